"""Which filters go?

==================  ==================================================================================
question            answer
==================  ==================================================================================
what feeds what     ``trace_channels`` -> ``ChannelGraph`` (layers, groups, what is pinned and why)
what matters        ``score_filters`` -> ``FilterScores``; ``import_score_table`` reads the authors' tables
one frame's worth   ``FrameGaps``; how little must be computed for it: ``incremental/``
how many frames     ``RaceRules``, ``decide`` -> ``Standing``: a race ends when the cut is settled
what stays          ``plan_from_scores``, ``proportional_plan`` -> ``PruningPlan``; ``PruningConfig`` is MODEL.PRUNING
the cut             ``apply_plan`` (a new network), ``apply_plan_`` (in place), ``masked`` (as if cut)
a student           ``channel_graph``, ``inherit_weights``, ``cut_student_`` for detectors that ``predict_dense``
on disk             ``save_scores``, ``load_scores``, ``save_plan``, ``load_plan``, ``plan_to_dict``, ``plan_from_dict``
what belongs        ``model_fingerprint`` (weights), ``architecture_fingerprint`` (names and shapes)
what it costs       ``count_parameters``, ``count_macs``, ``count_layers``, ``measure_latency``, ``peak_memory``
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
from cakdp_ext.pruning.cost import LatencyStats, MemoryPeak, measure_latency, peak_memory
from cakdp_ext.pruning.counting import (
    ACTIVATIONS,
    EXACT,
    THOP,
    LayerCount,
    count_layers,
    count_macs,
    count_parameters,
)
from cakdp_ext.pruning.criteria import CAPR, CRITERIA, PROPR, RANKED
from cakdp_ext.pruning.cut_cost import CutCost, CutCounter
from cakdp_ext.pruning.gaps import EXACT_SCORING, PLAIN_SCORING, REMOVALS, FrameGaps
from cakdp_ext.pruning.graph import DEFAULT_SCOPE, ChannelGraph, Filter, ProducerLayer, Slot, trace_channels
from cakdp_ext.pruning.ladder import CutLadder, LayerRules, proportional_ladder, ranked_ladder
from cakdp_ext.pruning.plan import (
    ladder_from_scores,
    plan_from_scores,
    plan_of,
    proportional_plan,
    require_race_for,
    require_ratio,
    scored_by,
)
from cakdp_ext.pruning.race import RaceRules, Standing, decide
from cakdp_ext.pruning.score import in_order, score_filters, started_scores, with_gaps
from cakdp_ext.pruning.settings import (
    BUDGETS,
    KEEP_RATIO,
    LATENCY,
    MACS,
    PARAMS,
    RACE,
    SCORINGS,
    Budget,
    PruningConfig,
    criterion_of,
    first_difference,
    read_amount,
    short,
)
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

__all__ = [
    "removed_filters",
    "DEFAULT_SCOPE",
    "LatencyStats",
    "KEEP_RATIO",
    "CRITERIA",
    "example_batch",
    "load_plan",
    "load_scores",
    "peak_memory",
    "first_difference",
    "read_amount",
    "Slot",
    "channel_graph",
    "proportional_ladder",
    "Budget",
    "masked",
    "ACTIVATIONS",
    "BUDGETS",
    "cut_student_",
    "plan_from_scores",
    "score_filters",
    "decide",
    "THOP",
    "PARAMS",
    "save_scores",
    "architecture_fingerprint",
    "count_macs",
    "class_logits",
    "CAPR",
    "PROPR",
    "short",
    "RANKED",
    "REMOVALS",
    "with_gaps",
    "RACE",
    "model_fingerprint",
    "FrameGaps",
    "apply_plan",
    "apply_plan_",
    "CutCost",
    "CutLadder",
    "MACS",
    "MemoryPeak",
    "plan_from_dict",
    "require_ratio",
    "Standing",
    "LayerCount",
    "require_match",
    "ChannelGraph",
    "plan_to_dict",
    "ladder_from_scores",
    "save_plan",
    "count_parameters",
    "iou_branch",
    "import_score_table",
    "CutCounter",
    "trace_channels",
    "EXACT",
    "RaceRules",
    "EXACT_SCORING",
    "ProducerLayer",
    "PruningConfig",
    "criterion_of",
    "proportional_plan",
    "scored_by",
    "PLAIN_SCORING",
    "count_layers",
    "inherit_weights",
    "plan_of",
    "LATENCY",
    "require_race_for",
    "started_scores",
    "SCORINGS",
    "Filter",
    "LayerRules",
    "measure_latency",
    "ranked_ladder",
    "in_order",
]
