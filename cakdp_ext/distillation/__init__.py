"""What is imitated, and where? The student's predictions learn from the teacher's second stage."""

from cakdp_ext.distillation.category import category_loss
from cakdp_ext.distillation.classes import class_order, require_same_classes, to_student, to_teacher
from cakdp_ext.distillation.comparison import Samples, compare
from cakdp_ext.distillation.config import DistillConfig, MethodChoice, SkdConfig
from cakdp_ext.distillation.distiller import Distiller, Taught, build_methods, roles_of
from cakdp_ext.distillation.general_instance import GeneralInstanceKD
from cakdp_ext.distillation.homogeneous import matched_logits, matched_rows, require_homogeneous
from cakdp_ext.distillation.instances import sample_boxes
from cakdp_ext.distillation.matching import SiteMatch, check_sites, match_sites, rois_at
from cakdp_ext.distillation.methods import DistillMethod, DistillOutput, Lesson, find_method, register_method
from cakdp_ext.distillation.point_distiller import PointDistiller
from cakdp_ext.distillation.projector import MapProjector, RowProjector
from cakdp_ext.distillation.reading import read_config
from cakdp_ext.distillation.representatives import Representatives, select_representatives
from cakdp_ext.distillation.sparse_kd import SparseKD
from cakdp_ext.distillation.student_motivated import StudentMotivatedKD
from cakdp_ext.distillation.teacher import FrozenTeacher, SecondStage
from cakdp_ext.distillation.teacher_motivated import JointKD, TeacherMotivatedKD, sites_of_rois
from cakdp_ext.distillation.vanilla import VanillaKD, soft_target_loss

__all__ = [
    "DistillConfig",
    "DistillMethod",
    "DistillOutput",
    "Distiller",
    "FrozenTeacher",
    "GeneralInstanceKD",
    "JointKD",
    "Lesson",
    "MapProjector",
    "MethodChoice",
    "PointDistiller",
    "Representatives",
    "RowProjector",
    "Samples",
    "SecondStage",
    "SiteMatch",
    "SkdConfig",
    "SparseKD",
    "StudentMotivatedKD",
    "Taught",
    "TeacherMotivatedKD",
    "VanillaKD",
    "build_methods",
    "category_loss",
    "check_sites",
    "class_order",
    "compare",
    "find_method",
    "match_sites",
    "matched_logits",
    "matched_rows",
    "read_config",
    "register_method",
    "require_homogeneous",
    "require_same_classes",
    "rois_at",
    "roles_of",
    "sample_boxes",
    "select_representatives",
    "sites_of_rois",
    "soft_target_loss",
    "to_student",
    "to_teacher",
]
