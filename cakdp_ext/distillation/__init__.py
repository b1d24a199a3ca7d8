"""What is imitated, and where? The student's representative samples learn from the teacher's second stage."""

from cakdp_ext.distillation.category import category_loss
from cakdp_ext.distillation.config import DistillConfig
from cakdp_ext.distillation.matching import SiteMatch, check_sites, match_sites, rois_at
from cakdp_ext.distillation.methods import DistillMethod, DistillOutput, build_method, register_method
from cakdp_ext.distillation.representatives import Representatives, select_representatives
from cakdp_ext.distillation.student_motivated import StudentMotivatedKD
from cakdp_ext.distillation.teacher import FrozenTeacher

__all__ = [
    "DistillConfig",
    "DistillMethod",
    "DistillOutput",
    "FrozenTeacher",
    "Representatives",
    "SiteMatch",
    "StudentMotivatedKD",
    "build_method",
    "category_loss",
    "check_sites",
    "match_sites",
    "register_method",
    "rois_at",
    "select_representatives",
]
