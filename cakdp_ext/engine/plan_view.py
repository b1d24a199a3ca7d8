"""What does a cut look like? A plan as text and as a picture, and its costs beside those of the whole network."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from cakdp_ext.engine.measure import Cost
from cakdp_ext.engine.png import png
from cakdp_ext.pruning import criterion_of
from cakdp_ext.types import PruningPlan

KEPT, GONE = "#0b6e5f", "#dfe4ea"


def plan_table(plan: PruningPlan) -> str:
    """One line a layer: filters kept, of how many, as a bar; below, what they were chosen by and what sums tie."""
    width = max(map(len, plan.num_filters))
    lines = []
    for layer, total in plan.num_filters.items():
        kept = len(plan.keep_indices[layer])
        bar = "#" * round(24 * kept / total)
        lines.append(f"{layer:<{width}}  {kept:>5} of {total:<5} {bar}")
    kept, total = sum(map(len, plan.keep_indices.values())), sum(plan.num_filters.values())
    lines.append(f"{'all':<{width}}  {kept:>5} of {total:<5} ({plan.keep_ratio:.1%})")
    return "\n".join([*lines, *_decisions(plan)])


def _decisions(plan: PruningPlan) -> list[str]:
    """Say how many decisions there were, and which layers' filters were decided on together."""
    kept, total = plan.source.get("decisions", (None, None))
    lines = [f"by {criterion_of(plan)}" + (f": {kept} of {total} decisions stay" if total else "")]
    ties = plan.source.get("sums", ())
    if ties:
        lines.append("filters that meet in a sum are one decision, which counts once:")
    for tie in ties:
        stay, count = tie["decisions"]
        lines.append(f"  {stay} of {count} stay: {' + '.join(tie['layers'])}")
    return lines


def cost_table(costs: Mapping[str, Cost]) -> str:
    """Compare networks by parameters, multiply-accumulates, activations and measured latency, one line each."""
    first = next(iter(costs.values()))
    rows = [["", "parameters", "MACs [G]", "activations [M]", "latency p50 / p90 [ms]"]]
    for name, cost in costs.items():
        shares = (cost.params / first.params, cost.macs / first.macs, cost.activations / first.activations)
        params, macs, activations = (f" ({share:.0%})" if cost is not first else "" for share in shares)
        rows.append([
            name,
            f"{cost.params:,}{params}",
            f"{cost.macs / 1e9:.3g}{macs}",
            f"{cost.activations / 1e6:.3g}{activations}",
            f"{cost.latency.p50:.1f} / {cost.latency.p90:.1f}",
        ])  # fmt: skip
    return aligned(rows)


def aligned(rows: list[list[str]]) -> str:
    """Set cells in columns, the first to the left, the others to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def plan_png(plan: PruningPlan, title: str) -> bytes:
    """Draw the filters of each layer, from input to output: those that stay in front of all that there were.

    Returns:
        A PNG file.
    """
    names = list(plan.num_filters)
    kept, places = [len(plan.keep_indices[name]) for name in names], range(len(names))
    figure = Figure(figsize=(9, 1.2 + 0.24 * len(names)), dpi=130, layout="constrained")
    axis = figure.add_subplot()
    axis.barh(places, list(plan.num_filters.values()), color=GONE, label="removed")
    axis.barh(places, kept, color=KEPT, label="kept")
    for place, count, total in zip(places, kept, plan.num_filters.values(), strict=True):
        axis.text(total, place, f" {count} of {total}", va="center", fontsize=8)
    axis.set_yticks(places, names, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.01)
    axis.set_xlabel("filters")
    axis.set_title(title, fontsize=11, loc="left")
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    return png(figure)
