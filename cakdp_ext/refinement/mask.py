"""What the predicted IoU does to the class scores before NMS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError

MODES = ("mask", "rescore", "none")
CHANNELS = ("highest", "best_class")


@dataclass(frozen=True)
class IoURefinement:
    """How the predicted IoU is used.

    Attributes:
        mode: ``mask`` takes samples out of NMS (CaKDP), ``rescore`` multiplies the scores (what came before),
            ``none`` leaves everything as it is.
        delta: ``mask``: a sample whose predicted IoU is not above it is out; in [0, 1).
        channel: ``mask``: which IoU channel of a sample is compared: ``highest`` of all its channels (the released
            code: a sample stays if it overlaps an object of any class), or that of its ``best_class``, as the
            element-wise mask of the paper reads for the class that is reported.
        power: ``rescore``: exponent p of ``score ** (1 - p) * iou ** p``; in [0, 1].
    """

    mode: str = "mask"
    delta: float = 0.1
    channel: str = "highest"
    power: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown IoU refinement mode {self.mode!r}; valid modes: {', '.join(MODES)}")
        if self.channel not in CHANNELS:
            raise ValueError(f"unknown IoU mask channel {self.channel!r}; valid channels: {', '.join(CHANNELS)}")
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta must lie in [0, 1), got {self.delta}; every sample is out from 1 on")
        if not 0 <= self.power <= 1:
            raise ValueError(f"power must lie in [0, 1], got {self.power}; 0 ignores the IoU, 1 the class score")

    def require_branch(self, has_branch: bool, head: str) -> None:
        """Refuse a mode that needs an IoU branch where the dense head has none.

        Raises:
            ConfigError: naming the head.
        """
        if self.mode != "none" and not has_branch:
            raise ConfigError(
                f"POST_PROCESSING.IOU_REFINEMENT asks for {self.mode!r}, but {head} predicts no IoU; "
                "use AnchorHeadSingleIoU or CenterHeadIoU, or MODE: none"
            )


def refine_scores(cls_scores: Tensor, iou_scores: Tensor | None, settings: IoURefinement) -> tuple[Tensor, Tensor]:
    """Apply the predicted IoU to one frame.

    Args:
        cls_scores: ``(A, C)`` in [0, 1].
        iou_scores: ``(A, C)`` in [0, 1]; may be None with mode ``none``.
        settings: what to do.

    Returns:
        ``scores (A, C)`` and ``keep (A,)`` bool, the samples that may go to NMS. The scores are the input itself
        unless mode is ``rescore``; keep is all True unless mode is ``mask``. A = 0 gives empty tensors.

    Raises:
        ValueError: where the shapes differ, or where the mode needs IoU scores and there are none.

    Source:
        CaKDP, Section 3.4 (``mask``); Table 7 compares it with ``rescore``.
    """
    everything = torch.ones(cls_scores.shape[0], dtype=torch.bool, device=cls_scores.device)
    if settings.mode == "none":
        return cls_scores, everything
    if iou_scores is None or iou_scores.shape != cls_scores.shape:
        got = "none" if iou_scores is None else tuple(iou_scores.shape)
        raise ValueError(
            f"IoU refinement {settings.mode!r} expected IoU scores of shape {tuple(cls_scores.shape)}, got {got}; "
            "give the dense head an IoU branch or set the mode to 'none'"
        )
    if settings.mode == "rescore":
        return cls_scores ** (1 - settings.power) * iou_scores**settings.power, everything
    chosen = iou_scores if settings.channel == "highest" else cls_scores
    iou = iou_scores.gather(1, chosen.argmax(dim=1, keepdim=True)).squeeze(1)
    return cls_scores, iou > settings.delta
