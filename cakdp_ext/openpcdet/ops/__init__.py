"""OpenPCDet's compiled modules, by their names and signatures, on the ops of this package: CPU and CUDA.

Each function fills tensors that its caller has allocated, as the original does. On CPU ``use_cpu()`` puts all of them
in place. Elsewhere put a module in the original's place before ``import pcdet``, and OpenPCDet's models run on it::

    import sys
    from cakdp_ext.openpcdet.ops import iou3d_nms_cuda
    sys.modules["pcdet.ops.iou3d_nms.iou3d_nms_cuda"] = iou3d_nms_cuda
"""
