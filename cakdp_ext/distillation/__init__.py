"""What is imitated, and where? The student's predictions learn from the teacher's second stage."""

from cakdp_ext.distillation.category import category_loss
from cakdp_ext.distillation.classes import class_order, require_same_classes, to_student, to_teacher
from cakdp_ext.distillation.comparison import Samples, compare
from cakdp_ext.distillation.config import DistillConfig
from cakdp_ext.distillation.matching import SiteMatch, check_sites, match_sites, rois_at
from cakdp_ext.distillation.methods import DistillMethod, DistillOutput, build_method, register_method
from cakdp_ext.distillation.representatives import Representatives, select_representatives
from cakdp_ext.distillation.student_motivated import StudentMotivatedKD
from cakdp_ext.distillation.teacher import FrozenTeacher
from cakdp_ext.distillation.teacher_motivated import JointKD, TeacherMotivatedKD, sites_of_rois

__all__ = [
    "DistillConfig",
    "DistillMethod",
    "DistillOutput",
    "FrozenTeacher",
    "JointKD",
    "Representatives",
    "Samples",
    "SiteMatch",
    "StudentMotivatedKD",
    "TeacherMotivatedKD",
    "build_method",
    "category_loss",
    "check_sites",
    "class_order",
    "compare",
    "match_sites",
    "register_method",
    "require_same_classes",
    "rois_at",
    "select_representatives",
    "sites_of_rois",
    "to_student",
    "to_teacher",
]
