"""Which filters go?

==================  ==================================================================================
question            answer
==================  ==================================================================================
what feeds what     ``trace_channels`` -> ``ChannelGraph`` (layers, groups, what is pinned and why)
what matters        ``score_filters`` -> ``FilterScores``; ``import_score_table`` reads the authors' tables
one frame's worth   ``FrameGaps``; how little must be computed for it: ``incremental/``
how many frames     ``RaceRules``, ``decide`` -> ``Standing``: a race ends when the cut is settled
what stays          ``plan_from_scores``, ``proportional_plan`` -> ``PruningPlan``; ``PruningConfig`` is MODEL.PRUNING
which cuts          ``ladder_from_scores``, ``proportional_ladder`` -> ``CutLadder``; ``CutCounter`` tells their costs
the cut             ``apply_plan`` (a new network), ``apply_plan_`` (in place), ``masked`` (as if cut)
a student           ``channel_graph``, ``inherit_weights``, ``cut_student_`` for detectors that ``predict_dense``
born narrow         ``read_width``, ``narrow_``: MODEL.WIDTH; ``width_entry``, ``require_width`` for checkpoints
taken over          ``guide_weights_``: a student's first weights from its teacher's filters
on disk             ``save_scores``, ``load_scores``, ``save_plan``, ``load_plan``, ``plan_to_dict``, ``plan_from_dict``
what belongs        ``model_fingerprint`` (weights), ``architecture_fingerprint`` (names and shapes)
what it costs       ``count_parameters``, ``count_macs``, ``count_layers``, counted; ``measure_latency``,
                    ``measure_parts``, ``peak_memory``, measured
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
    REST,
    LatencyStats,
    MemoryPeak,
    PartCost,
    measure_latency,
    measure_parts,
    peak_memory,
)
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
from cakdp_ext.pruning.guide import guide_weights_
from cakdp_ext.pruning.ladder import CutLadder, Forced, LayerRules, forced_by, proportional_ladder, ranked_ladder
from cakdp_ext.pruning.plan import (
    ladder_from_scores,
    plan_from_scores,
    plan_of,
    proportional_plan,
    require_race_for,
    require_raceable,
    require_ratio,
    scored_by,
)
from cakdp_ext.pruning.race import RaceRules, Standing, decide
from cakdp_ext.pruning.score import counting, lacking, score_filters, started_scores, whole_frames, with_gaps
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
    inherit_weights,
    iou_branch,
    require_match,
)
from cakdp_ext.pruning.surgery import apply_plan, apply_plan_, masked, removed_filters
from cakdp_ext.pruning.width import WidthConfig, narrow_, read_width, require_width, width_entry, width_plan

__all__ = [
    "ACTIVATIONS",
    "BUDGETS",
    "CAPR",
    "CRITERIA",
    "DEFAULT_SCOPE",
    "EXACT",
    "EXACT_SCORING",
    "KEEP_RATIO",
    "LATENCY",
    "MACS",
    "PARAMS",
    "PLAIN_SCORING",
    "PROPR",
    "RACE",
    "RANKED",
    "REMOVALS",
    "REST",
    "SCORINGS",
    "THOP",
    "Budget",
    "ChannelGraph",
    "CutCost",
    "CutCounter",
    "CutLadder",
    "Filter",
    "FrameGaps",
    "LatencyStats",
    "LayerCount",
    "Forced",
    "LayerRules",
    "forced_by",
    "MemoryPeak",
    "PartCost",
    "ProducerLayer",
    "PruningConfig",
    "RaceRules",
    "Slot",
    "Standing",
    "WidthConfig",
    "apply_plan",
    "apply_plan_",
    "architecture_fingerprint",
    "channel_graph",
    "class_logits",
    "count_layers",
    "counting",
    "count_macs",
    "count_parameters",
    "criterion_of",
    "cut_student_",
    "decide",
    "first_difference",
    "guide_weights_",
    "import_score_table",
    "inherit_weights",
    "iou_branch",
    "lacking",
    "ladder_from_scores",
    "load_plan",
    "load_scores",
    "masked",
    "measure_latency",
    "measure_parts",
    "model_fingerprint",
    "narrow_",
    "peak_memory",
    "plan_from_dict",
    "plan_from_scores",
    "plan_of",
    "plan_to_dict",
    "proportional_ladder",
    "proportional_plan",
    "ranked_ladder",
    "read_amount",
    "read_width",
    "removed_filters",
    "require_match",
    "require_race_for",
    "require_raceable",
    "require_ratio",
    "require_width",
    "save_plan",
    "save_scores",
    "score_filters",
    "scored_by",
    "short",
    "started_scores",
    "trace_channels",
    "width_entry",
    "width_plan",
    "whole_frames",
    "with_gaps",
]
