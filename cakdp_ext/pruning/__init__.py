"""Which filters go?

==================  ==================================================================================
question            answer
==================  ==================================================================================
what feeds what     ``trace_channels`` -> ``ChannelGraph`` (layers, groups, what is pinned and why)
what matters        ``score_filters`` -> ``FilterScores``; ``import_score_table`` reads the authors' tables
what stays          ``plan_from_scores``, ``proportional_plan`` -> ``PruningPlan``; ``PruningConfig`` is MODEL.PRUNING
the cut             ``apply_plan`` (a new network), ``apply_plan_`` (in place), ``masked`` (as if cut)
a student           ``channel_graph``, ``inherit_weights``, ``cut_student_`` for detectors that ``predict_dense``
born narrow         ``read_width``, ``narrow_``: MODEL.WIDTH; ``width_entry``, ``require_width`` for checkpoints
taken over          ``guide_weights_``: a student's first weights from its teacher's filters
on disk             ``save_scores``, ``load_scores``, ``save_plan``, ``load_plan``, ``plan_to_dict``, ``plan_from_dict``
what belongs        ``model_fingerprint`` (weights), ``architecture_fingerprint`` (names and shapes)
what it costs       ``count_parameters``, ``count_macs``, ``count_macs_by``, ``measure_latency``, ``peak_memory``
==================  ==================================================================================

The folder knows no detector and no engine: it works on any network of convolutions (dense or spconv), linear layers,
norms and activations. Whoever calls says how to run it; for a ``OneStageStudent`` that is said already.
"""

from cakdp_ext.pruning.artefacts import (
    architecture_fingerprint,
    import_score_table,
    load_plan,
    load_scores,
    model_fingerprint,
    plan_from_dict,
    plan_to_dict,
    save_plan,
    save_scores,
)
from cakdp_ext.pruning.cost import (
    EXACT,
    THOP,
    LatencyStats,
    MacCount,
    MemoryPeak,
    count_macs,
    count_macs_by,
    count_parameters,
    measure_latency,
    peak_memory,
)
from cakdp_ext.pruning.criteria import CAPR, CRITERIA, PROPR, RANKED
from cakdp_ext.pruning.graph import DEFAULT_SCOPE, ChannelGraph, Filter, ProducerLayer, Slot, trace_channels
from cakdp_ext.pruning.guide import guide_weights_
from cakdp_ext.pruning.plan import PruningConfig, criterion_of, plan_from_scores, proportional_plan
from cakdp_ext.pruning.score import score_filters
from cakdp_ext.pruning.students import (
    channel_graph,
    class_logits,
    cut_student_,
    example_batch,
    inherit_weights,
    iou_branch,
    require_match,
)
from cakdp_ext.pruning.surgery import apply_plan, apply_plan_, masked, removed_filters
from cakdp_ext.pruning.width import WidthConfig, narrow_, read_width, require_width, width_entry, width_plan

__all__ = [
    "CAPR",
    "CRITERIA",
    "DEFAULT_SCOPE",
    "EXACT",
    "PROPR",
    "RANKED",
    "THOP",
    "ChannelGraph",
    "Filter",
    "LatencyStats",
    "MacCount",
    "MemoryPeak",
    "ProducerLayer",
    "PruningConfig",
    "Slot",
    "WidthConfig",
    "apply_plan",
    "apply_plan_",
    "architecture_fingerprint",
    "channel_graph",
    "class_logits",
    "count_macs",
    "count_macs_by",
    "count_parameters",
    "criterion_of",
    "cut_student_",
    "example_batch",
    "guide_weights_",
    "import_score_table",
    "inherit_weights",
    "iou_branch",
    "load_plan",
    "load_scores",
    "masked",
    "measure_latency",
    "model_fingerprint",
    "narrow_",
    "peak_memory",
    "plan_from_dict",
    "plan_from_scores",
    "plan_to_dict",
    "proportional_plan",
    "read_width",
    "removed_filters",
    "require_match",
    "require_width",
    "save_plan",
    "save_scores",
    "score_filters",
    "trace_channels",
    "width_entry",
    "width_plan",
]
