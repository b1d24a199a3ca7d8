"""Methods of distillation side by side: the same cut, start, frames and seeds under each, and plain baselines."""

from cakdp_ext.engine.comparison.study import Comparison
from cakdp_ext.engine.comparison.trainings import ComparisonRequest

__all__ = ["Comparison", "ComparisonRequest"]
