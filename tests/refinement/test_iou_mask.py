import pytest
import torch

from cakdp_ext.config import ConfigError, from_node
from cakdp_ext.refinement import IoURefinement, refine_scores

CLS = torch.tensor([[0.9, 0.2], [0.3, 0.8], [0.7, 0.1], [0.6, 0.5]])
IOU = torch.tensor([[0.05, 0.9], [0.0, 0.4], [0.1, 0.9], [0.2, 0.0]])


@pytest.mark.parametrize(
    ("channel", "expected"), [("best_class", [False, True, False, False]), ("highest", [True, True, True, False])]
)
def test_mask_asks_the_chosen_channel_and_delta_itself_is_out(channel, expected):
    iou_scores = torch.tensor([[0.05, 0.9], [0.0, 0.4], [0.1, 0.9], [0.1, 0.0]])
    scores, keep = refine_scores(CLS, iou_scores, IoURefinement(delta=0.1, channel=channel))
    assert keep.tolist() == expected
    assert torch.equal(scores, CLS)


def test_the_default_is_the_rule_of_the_released_code():
    assert IoURefinement() == IoURefinement(mode="mask", delta=0.1, channel="highest")


def test_rescore_is_the_weighted_geometric_mean_channel_by_channel():
    scores, keep = refine_scores(CLS, IOU, IoURefinement(mode="rescore", power=0.25))
    expected = [
        [c**0.75 * i**0.25 for c, i in zip(*rows, strict=True)] for rows in zip(CLS.tolist(), IOU.tolist(), strict=True)
    ]
    torch.testing.assert_close(scores, torch.tensor(expected))
    assert keep.all()


@pytest.mark.parametrize(("power", "expected"), [(0.0, CLS), (1.0, IOU)])
def test_rescore_at_its_ends_gives_one_of_the_two_scores(power, expected):
    scores, _ = refine_scores(CLS, IOU, IoURefinement(mode="rescore", power=power))
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("iou_scores", [None, IOU])
def test_none_changes_nothing_and_needs_no_iou_head(iou_scores):
    scores, keep = refine_scores(CLS, iou_scores, IoURefinement(mode="none"))
    assert torch.equal(scores, CLS)
    assert keep.all()


@pytest.mark.parametrize("mode", ["mask", "rescore", "none"])
def test_a_frame_without_samples_stays_empty(mode):
    scores, keep = refine_scores(CLS[:0], IOU[:0], IoURefinement(mode=mode))
    assert scores.shape == (0, 2)
    assert keep.shape == (0,)
    assert keep.dtype == torch.bool


@pytest.mark.parametrize("mode", ["mask", "rescore"])
@pytest.mark.parametrize(("iou_scores", "got"), [(None, "got none"), (IOU[:, :1], r"got \(4, 1\)")])
def test_a_head_that_does_not_fit_is_named(mode, iou_scores, got):
    with pytest.raises(ValueError, match=got):
        refine_scores(CLS, iou_scores, IoURefinement(mode=mode))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"MODE": "soft"}, "valid modes: mask, rescore, none"),
        ({"DELTA": 1.0}, r"\[0, 1\)"),
        ({"DELTA": -0.1}, r"\[0, 1\)"),
        ({"DELTA": float("nan")}, r"\[0, 1\)"),
        ({"MODE": "rescore", "POWER": 1.5}, r"\[0, 1\]"),
        ({"DELTAS": 0.1}, "valid keys: MODE, DELTA, CHANNEL, POWER"),
        ({"CHANNEL": "any"}, "valid channels: highest, best_class"),
    ],
)
def test_settings_that_make_no_sense_are_refused(node, message):
    with pytest.raises(ConfigError, match=message):
        from_node(IoURefinement, node, "POST_PROCESSING.IOU")
