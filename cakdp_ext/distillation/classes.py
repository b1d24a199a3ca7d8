"""Which class of the teacher is which of the student's? Both may list the same classes in their own order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cakdp_ext.config import ConfigError
from cakdp_ext.types import PredictionSites


def class_order(student_sites: PredictionSites, teacher_sites: PredictionSites) -> tuple[int, ...]:
    """Give, for each of the student's classes, the teacher's label of the same name.

    Classes without names, those of a head that does not tell them apart, are taken in their own order.

    Raises:
        ConfigError: where one of the two knows a class that the other does not.
    """
    ours, theirs = student_sites.class_names, teacher_sites.class_names
    if not ours or not theirs:
        if student_sites.num_classes != teacher_sites.num_classes:
            raise ConfigError(
                f"the student tells {student_sites.num_classes} classes apart, the teacher "
                f"{teacher_sites.num_classes}; give both the same CLASS_NAMES"
            )
        return tuple(range(student_sites.num_classes))
    require_same_classes(ours, theirs)
    return tuple(theirs.index(name) for name in ours)


def require_same_classes(
    ours: Sequence[str], theirs: Sequence[str], who: str = "the student", teacher: str = "the teacher"
) -> None:
    """Refuse a teacher that does not know just the student's classes, in whatever order.

    Args:
        ours: names that the student knows.
        theirs: names that the teacher knows.
        who: the student, in errors.
        teacher: the teacher, in errors.

    Raises:
        ConfigError: naming the classes that only one of them knows.
    """
    lacks = [name for name in ours if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    if not lacks and not extra:
        return
    faults = [f"{teacher} does not know {', '.join(lacks)}"] if lacks else []
    faults += [f"{who} does not know {', '.join(extra)}"] if extra else []
    raise ConfigError(
        f"{'; '.join(faults)}: {who} has CLASS_NAMES {list(ours)}, {teacher} {list(theirs)}; both must list the same "
        "classes, in any order"
    )


def to_teacher(labels: Tensor, order: tuple[int, ...]) -> Tensor:
    """Turn the student's labels ``(B, K)`` into the teacher's, see :func:`class_order`."""
    return _renumber(labels, order)


def to_student(labels: Tensor, order: tuple[int, ...]) -> Tensor:
    """Turn the teacher's labels ``(B, K)`` into the student's, see :func:`class_order`."""
    return _renumber(labels, tuple(order.index(label) for label in range(len(order))))


def _renumber(labels: Tensor, order: tuple[int, ...]) -> Tensor:
    if order == tuple(range(len(order))):
        return labels
    return torch.tensor(order, device=labels.device)[labels]
