"""What OpenPCDet's own detectors would pass over or mistake is said before they train."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.stock import relabelled, require_obeyed, warn_of_targets
from cakdp_ext.refinement import CenterIoUHeadConfig

CLASSES = ["Car", "Pedestrian", "Cyclist"]
TURNED = [["Cyclist", "Pedestrian"], ["Car"]]


class CenterHeadIoU:
    iou_config = CenterIoUHeadConfig()


def detector(head=None):
    return SimpleNamespace(dense_head=head)


def parts(*parts):
    return SimpleNamespace(class_names=CLASSES, class_names_each_head=parts)


@pytest.mark.parametrize(
    ("head", "sections", "message"),
    [
        (None, {"PRUNING": {"KEEP_RATIO": 0.5}}, "MODEL.PRUNING: CenterPoint is OpenPCDet's own"),
        (
            None,
            {"PRUNING": {"KEEP_RATIO": 0.5}, "DISTILL": {"ALPHA": 1}},
            "MODEL.PRUNING, MODEL.DISTILL: .* use MODEL.N",
        ),
        (None, {"POST_PROCESSING": {"IOU_REFINEMENT": {"DELTA": 0.1}}}, "MODEL.POST_PROCESSING.IOU_REFINEMENT: Cen"),
        (CenterHeadIoU(), {"POST_PROCESSING": None}, "the IoU mask of CenterHeadIoU: .* or CenterPointCaKDP"),
    ],
)
def test_sections_that_would_be_passed_over_are_named(head, sections, message):
    with pytest.raises(ConfigError, match=message):
        require_obeyed(detector(head), {"NAME": "CenterPoint", **sections})


@pytest.mark.parametrize(
    ("head", "sections"),
    [
        (None, {"PRUNING": None, "DISTILL": {}, "POST_PROCESSING": {"SCORE_THRESH": 0.1}}),
        (CenterHeadIoU(), {"POST_PROCESSING": {"IOU_REFINEMENT": {"MODE": "none"}}}),
        (CenterHeadIoU(), {"ROI_HEAD": {"NAME": "VoxelRCNNHead"}}),
    ],
)
def test_what_they_obey_passes(head, sections):
    require_obeyed(detector(head), {"NAME": "CenterPoint", **sections})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([CLASSES], []),
        ([["Car"], ["Pedestrian", "Cyclist"]], []),
        ([["Cyclist", "Pedestrian", "Car"]], []),
        (TURNED, [("Cyclist", "Car")]),
        ([["Pedestrian"], ["Cyclist"], ["Car"]], [("Pedestrian", "Car"), ("Cyclist", "Car")]),
    ],
)
def test_classes_that_later_parts_mistake(names, expected):
    assert list(relabelled(parts(*names))) == expected


def test_mistaken_targets_are_a_warning(caplog):
    warn_of_targets(detector(parts(*TURNED)))
    assert "teaches a later part that every Cyclist is a Car" in caplog.text
    caplog.clear()
    for head in (None, parts(CLASSES), CenterHeadIoU()):
        warn_of_targets(detector(head))
    assert not caplog.text
