"""What would one of OpenPCDet's own detectors do otherwise than the YAML says, without a word?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cakdp_ext.config import ConfigError
from cakdp_ext.openpcdet.dense import has_iou_branch

LOG = logging.getLogger("cakdp_ext")


def require_obeyed(model: Any, model_cfg: Mapping[str, Any]) -> None:
    """Refuse what only a student of ours reads.

    Args:
        model: a detector of OpenPCDet's own.
        model_cfg: MODEL, from which it was built.

    Raises:
        ConfigError: naming the sections that would be passed over.
    """
    head = getattr(model, "dense_head", None)
    ignored = [f"MODEL.{section}" for section in ("PRUNING", "DISTILL", "WIDTH") if model_cfg.get(section)]
    refinement = (model_cfg.get("POST_PROCESSING") or {}).get("IOU_REFINEMENT") or {}
    is_masked = bool(refinement) or (has_iou_branch(head) and not model_cfg.get("ROI_HEAD"))
    if is_masked and refinement.get("MODE") != "none":
        ignored.append(
            "MODEL.POST_PROCESSING.IOU_REFINEMENT" if refinement else f"the IoU mask of {type(head).__name__}"
        )
    if ignored:
        raise ConfigError(
            f"{', '.join(ignored)}: {model_cfg.get('NAME')} is OpenPCDet's own, which passes over that; use "
            "MODEL.NAME: SECONDNetCaKDP or CenterPointCaKDP"
        )


def warn_of_targets(model: Any) -> None:
    """Say where OpenPCDet's CenterHead is going to be taught wrong classes."""
    head = getattr(model, "dense_head", None)
    for true, taken in () if has_iou_branch(head) else relabelled(head):
        LOG.warning(
            "CLASS_NAMES_EACH_HEAD: OpenPCDet's CenterHead teaches a later part that every %s is a %s; keep the order "
            "of CLASS_NAMES, or use MODEL.NAME: CenterPointCaKDP, which does not",
            true,
            taken,
        )


def relabelled(head: Any) -> Iterator[tuple[str, str]]:
    """Tell which classes a CenterHead takes for which others when it assigns targets.

    A part writes the number that a class has in it over the label of each of its objects, and later parts read that.

    Args:
        head: any dense head, or None.
    """
    parts: Sequence[Sequence[str]] = getattr(head, "class_names_each_head", ())
    for number, names in enumerate(parts):
        for true, taken in zip(names, head.class_names, strict=False):
            if true != taken and any(taken in later for later in parts[number + 1 :]):
                yield true, taken
