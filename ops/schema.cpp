// What the native ops are called and take; kernels register themselves for their device.
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(cakdp, m) {
    m.def("boxes_overlap_bev(Tensor boxes1, Tensor boxes2, bool compat=False) -> Tensor");
    m.def("boxes_overlap_bev_aligned(Tensor boxes1, Tensor boxes2, bool compat=False) -> Tensor");
    m.def("boxes_iou_bev(Tensor boxes1, Tensor boxes2, bool compat=False) -> Tensor");
    m.def("boxes_iou_bev_aligned(Tensor boxes1, Tensor boxes2, bool compat=False) -> Tensor");
    m.def("boxes_iou_3d(Tensor boxes1, Tensor boxes2, bool compat=False) -> Tensor");
    m.def("boxes_iou_3d_aligned(Tensor boxes1, Tensor boxes2, bool compat=False) -> Tensor");
    m.def("nearest_bev_iou(Tensor boxes1, Tensor boxes2) -> Tensor");
    m.def(
        "nms_sorted(Tensor boxes, Tensor? groups, float iou_threshold, bool axis_aligned=False, bool compat=False, "
        "int pre_max=-1, int post_max=-1) -> Tensor");
    m.def("points_in_boxes(Tensor points, Tensor boxes) -> Tensor");
    m.def(
        "voxel_query(Tensor queries, Tensor query_xyz, Tensor voxel_coords, Tensor voxel_xyz, int[3] spatial_shape, "
        "int batch_size, int[3] ranges, float radius, int num_samples) -> (Tensor index, Tensor empty)");
}

// An empty module: importing it loads this library, and loading it registers the ops.
PyMODINIT_FUNC PyInit__C() {
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "Native ops of cakdp_ext.", -1, nullptr};
    return PyModule_Create(&definition);
}
