"""Detections come back in KITTI's terms: what was labelled and detected exactly is described exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cakdp_ext.datasets import collate, write_kitti_labels
from cakdp_ext.datasets.kitti.labels import read_labels
from cakdp_ext.types import Detections

SHAPES = {
    "name": (0,), "truncated": (0,), "occluded": (0,), "alpha": (0,), "bbox": (0, 4), "dimensions": (0, 3),
    "location": (0, 3), "rotation_y": (0,), "score": (0,), "boxes_lidar": (0, 7),
}  # fmt: skip


def perfect(dataset):
    """A batch of all frames, and their labelled boxes as detections."""
    frames = [dataset[i] for i in range(len(dataset))]
    detections = [
        Detections(
            torch.from_numpy(f.gt_boxes), torch.linspace(0.9, 0.5, len(f.gt_boxes)), torch.from_numpy(f.gt_labels)
        )
        for f in frames
    ]
    return collate(frames), detections


def same_angle(one, other, atol=1e-4):
    np.testing.assert_allclose(np.cos(one - other), 1, atol=atol**2)


def test_labelled_boxes_are_described_as_labelled(kitti):
    dataset = kitti(False)
    found = dataset.to_annotations(*perfect(dataset))
    for frame, truth in zip(found, dataset.ground_truth(), strict=True):
        known = np.isin(truth["name"], dataset.class_names)
        assert frame["frame_id"] == truth["frame_id"]
        assert frame["name"].tolist() == truth["name"][known].tolist()
        np.testing.assert_allclose(frame["location"], truth["location"][known], atol=1e-4)
        np.testing.assert_allclose(frame["dimensions"], truth["dimensions"][known], atol=1e-5)
        np.testing.assert_allclose(frame["boxes_lidar"][:, :6], truth["gt_boxes_lidar"][known[:4]][:, :6], atol=1e-4)
        same_angle(frame["rotation_y"], truth["rotation_y"][known])
        same_angle(frame["alpha"], truth["alpha"][known], atol=2e-2)  # from the LiDAR's origin, not the camera's
        np.testing.assert_allclose(frame["bbox"], truth["bbox"][known], atol=8)  # KITTI's boxes tilt with the camera
        np.testing.assert_allclose(frame["score"], np.linspace(0.9, 0.5, known.sum()))
        assert not frame["truncated"].any()
        assert not frame["occluded"].any()


def test_no_detections_give_empty_columns_of_the_right_shape(kitti):
    dataset = kitti(False)
    batch, detections = perfect(dataset)
    nothing = Detections(torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    empty, full = dataset.to_annotations(batch, [nothing, detections[1]])
    assert {key: value.shape for key, value in empty.items() if key != "frame_id"} == SHAPES
    assert empty["name"].dtype.kind == "U"
    assert len(full["name"]) == 3


def test_half_precision_detections_are_described_too(kitti):
    dataset = kitti(False)
    batch, detections = perfect(dataset)
    half = [Detections(d.boxes.bfloat16(), d.scores.bfloat16(), d.labels) for d in detections]
    assert dataset.to_annotations(batch, half)[0]["score"].dtype == np.float64


def test_other_numbers_of_frames_are_an_error(kitti):
    dataset = kitti(False)
    batch, detections = perfect(dataset)
    with pytest.raises(ValueError, match="expected detections of 2 frames, got 1"):
        dataset.to_annotations(batch, detections[:1])


def test_result_files_are_read_back(kitti, tmp_path):
    dataset = kitti(False)
    batch, detections = perfect(dataset)
    detections[1] = Detections(torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    found = dataset.to_annotations(batch, detections)
    write_kitti_labels(found, tmp_path / "results" / "data")
    assert (tmp_path / "results" / "data" / "000005.txt").read_text() == ""
    labels = read_labels(tmp_path / "results" / "data" / "000004.txt")
    for i, label in enumerate(labels):
        assert label.name == found[0]["name"][i]
        np.testing.assert_allclose(label.bbox, found[0]["bbox"][i], atol=1e-4)
        np.testing.assert_allclose(label.dimensions, found[0]["dimensions"][i], atol=1e-4)
        np.testing.assert_allclose(label.location, found[0]["location"][i], atol=1e-4)
        np.testing.assert_allclose(
            (label.alpha, label.rotation_y, label.score),
            [found[0][key][i] for key in ("alpha", "rotation_y", "score")],
            atol=1e-4,
        )
    assert len(labels) == 3


@pytest.mark.real_data
def test_real_labels_project_onto_their_own_image_boxes(real_kitti_root, data_cfg):
    from cakdp_ext.datasets import build_dataset

    data_cfg.DATA_PATH = str(real_kitti_root)
    dataset = build_dataset(data_cfg, ["Car", "Pedestrian", "Cyclist"], False)
    found = dataset.to_annotations(*perfect(dataset))
    for frame, truth in zip(found, dataset.ground_truth(), strict=True):
        known = np.isin(truth["name"], dataset.class_names)
        boxes, labelled = frame["bbox"], truth["bbox"][known]
        shared = np.clip(np.minimum(boxes[:, 2:], labelled[:, 2:]) - np.maximum(boxes[:, :2], labelled[:, :2]), 0, None)
        areas = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, labelled)]
        iou = shared.prod(axis=1) / (areas[0] + areas[1] - shared.prod(axis=1))
        assert (iou > 0.7).all(), (frame["frame_id"], iou)
        same_angle(frame["alpha"], truth["alpha"][known], atol=0.05)
