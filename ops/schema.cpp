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
    m.def("farthest_point_sampling(Tensor xyz, Tensor counts, int[] num_samples) -> Tensor");
    m.def(
        "ball_query(Tensor xyz, Tensor counts, Tensor new_xyz, Tensor new_counts, float[] radii, int[] num_samples) "
        "-> (Tensor[] index, Tensor[] empty)");
    m.def("group_points(Tensor features, Tensor index, Tensor? empty) -> Tensor");
    m.def("group_points_backward(Tensor grad, Tensor index, Tensor? empty, SymInt num_rows) -> Tensor");
    m.def(
        "three_nn(Tensor unknown, Tensor unknown_counts, Tensor known, Tensor known_counts) "
        "-> (Tensor distances, Tensor index)");
    m.def("three_interpolate(Tensor features, Tensor index, Tensor weights) -> Tensor");
    m.def("three_interpolate_backward(Tensor grad, Tensor index, Tensor weights, SymInt num_rows) -> Tensor");
    m.def(
        "neighbors_in_boxes(Tensor points, Tensor point_counts, Tensor boxes, Tensor box_counts, int max_points) -> "
        "(Tensor start, Tensor length, Tensor index)");
    m.def(
        "neighbors_in_balls(Tensor points, Tensor point_counts, Tensor centers, Tensor center_counts, float radius, "
        "int max_points) -> (Tensor start, Tensor length, Tensor index)");
    m.def(
        "three_nn_local(Tensor points, Tensor centers, Tensor start, Tensor length, Tensor index) -> "
        "(Tensor distance_squared, Tensor nearest)");
    m.def(
        "group_by_cell(Tensor points, Tensor boxes, Tensor start, Tensor length, Tensor index, int[3] num_cells) -> "
        "(Tensor first, Tensor count, Tensor members)");
    m.def("pool_cells_mean(Tensor features, Tensor first, Tensor count, Tensor members) -> Tensor");
    m.def(
        "pool_cells_mean_backward(Tensor grad, Tensor first, Tensor count, Tensor members, SymInt num_rows) -> "
        "Tensor");
    m.def(
        "pool_cells_max(Tensor features, Tensor first, Tensor count, Tensor members) -> "
        "(Tensor pooled, Tensor winner)");
    m.def("pool_cells_max_backward(Tensor grad, Tensor winner, SymInt num_rows) -> Tensor");
}

// An empty module: importing it loads this library, and loading it registers the ops.
PyMODINIT_FUNC PyInit__C() {
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "Native ops of cakdp_ext.", -1, nullptr};
    return PyModule_Create(&definition);
}
