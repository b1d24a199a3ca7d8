from dataclasses import replace

import pytest
import torch

from cakdp_ext.config import ConfigError
from cakdp_ext.distillation import check_sites, rois_at


def test_the_same_anchors_pass_in_spite_of_rounding(make_sites):
    sites = make_sites(50)
    check_sites(sites, replace(sites, anchors=sites.anchors.double() + 1e-5))


def test_a_turned_anchor_is_named_with_both_versions(make_sites):
    sites = make_sites(50)
    anchors = sites.anchors.clone()
    anchors[17, 6] += 0.5
    anchors[31] += 1.0
    with pytest.raises(ConfigError, match=r"anchor 17 \(student \(.*\), teacher \(.*\)\)"):
        check_sites(sites, replace(sites, anchors=anchors))


def test_everything_that_differs_is_listed(make_sites):
    student, teacher = make_sites(50), replace(make_sites(40, num_classes=1, seed=1), stride=4)
    with pytest.raises(ConfigError) as caught:
        check_sites(student, teacher)
    for part in ("student 3, teacher 1", "student 8, teacher 4", "student 50, teacher 40", "anchor 0"):
        assert part in str(caught.value)


def test_nan_anchors_are_not_the_same(make_sites):
    sites = make_sites(3)
    anchors = sites.anchors.clone()
    anchors[2, 0] = float("nan")
    with pytest.raises(ConfigError, match="anchor 2"):
        check_sites(sites, replace(sites, anchors=anchors))


@pytest.mark.parametrize(("student", "teacher"), [(False, True), (True, False), (False, False)])
def test_a_center_head_is_refused_by_name(make_sites, student, teacher):
    sites = make_sites(5)
    pair = {"student": student, "teacher": teacher}
    with pytest.raises(ConfigError, match=" and ".join(n for n, has in pair.items() if not has) + " has no anchors"):
        check_sites(*(sites if has else replace(sites, anchors=None) for has in pair.values()))


def test_rois_are_the_teachers_boxes_at_the_same_anchors(make_boxes):
    boxes = make_boxes(2, 9).requires_grad_()
    rois = rois_at(boxes, torch.tensor([[8, 0, 3], [1, 1, 7]]))
    assert not rois.requires_grad
    for frame, indices in enumerate([[8, 0, 3], [1, 1, 7]]):
        for slot, index in enumerate(indices):
            assert torch.equal(rois[frame, slot], boxes[frame, index])


def test_no_representatives_give_no_rois(make_boxes):
    assert rois_at(make_boxes(2, 9), torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, 7)
