"""A lesson from what a student and a teacher say, without networks."""

from cakdp_ext.contract import EncodedScene
from cakdp_ext.distillation import Distiller, Lesson, SecondStage
from cakdp_ext.taps import Taps
from cakdp_ext.types import Role


def teach(config, predictions, sites, teacher, encoded):
    """Compare a student's predictions with a frozen teacher's by the methods of a config; weighted."""
    shown = Taps(sites, {Role.DENSE: predictions})
    lesson = Lesson(None, shown, encoded.taps, SecondStage(teacher, encoded))
    return Distiller(config, teacher).compare(lesson)


def scene_of(sites, predictions):
    """Give what a teacher's first stage says, as its ``encode`` gives it."""
    return EncodedScene(Taps(sites, {Role.DENSE: predictions}))
