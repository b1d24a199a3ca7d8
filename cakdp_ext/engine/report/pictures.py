"""Frames seen from above, as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cakdp_ext.engine.png import png
from cakdp_ext.engine.report.content import Birdview, BirdviewPanel

GROUND_TRUTH = "#1a9850"
CLASS_COLORS = ("#0072b2", "#d55e00", "#aa3da0", "#b8860b", "#00a0c6", "#7f3b08")
POINTS = "#5b6673"
MARGIN = 2.0
OUTLINE = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1], [1, 1], [1, 0], [0, 0]]) / 2


def birdview_png(view: Birdview, class_names: Sequence[str]) -> bytes:
    """Draw the panels of a frame side by side: ground truth filled green, detections in their class's colour.

    The vehicle's front is up, its left is left. A line from the middle of a detection to its edge shows its
    heading; the surer a detection, the less transparent.

    Args:
        view: what to draw; empty points, boxes and panels are fine.
        class_names: what the labels mean.

    Returns:
        A PNG file.
    """
    panels = view.panels or (BirdviewPanel("no detections", np.empty((0, 7)), np.empty(0), np.empty(0, int)),)
    x_min, y_min, x_max, y_max = view.extent or _extent(view)
    width = 5.2
    height = float(np.clip(width * (x_max - x_min) / (y_max - y_min), 2.0, 7.0))
    figure = Figure(figsize=(width * len(panels), height + 0.7), dpi=130, layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, view, panel)
        axis.set(xlim=(y_max, y_min), ylim=(x_min, x_max), aspect="equal", xlabel="y, left [m]")
    axes[0].set_ylabel("x, front [m]")
    figure.legend(handles=_legend(panels, class_names), loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    return png(figure)


def _draw_panel(axis: Axes, view: Birdview, panel: BirdviewPanel) -> None:
    points = np.asarray(view.points, float)
    if points.size:
        axis.scatter(points[:, 1], points[:, 0], s=0.6, c=POINTS, alpha=0.35, linewidths=0, rasterized=True)
    scores = np.clip(np.nan_to_num(np.asarray(panel.scores, float)), 0, 1)
    colors = [(color_of(int(label)), 0.2 + 0.8 * score) for label, score in zip(panel.labels, scores, strict=True)]
    real = [outline[:4] for outline in box_lines(view.gt_boxes)]
    axis.add_collection(PolyCollection(real, facecolors=(GROUND_TRUTH, 0.35), edgecolors=GROUND_TRUTH, linewidths=1.6))
    axis.add_collection(LineCollection(box_lines(panel.boxes), colors=colors, linewidths=1.2))
    count = len(panel.boxes)
    axis.set_title(f"{panel.title} · {count} {'box' if count == 1 else 'boxes'}", fontsize=11, loc="left")
    axis.tick_params(labelsize=8, length=2)
    axis.spines[:].set_color("#c5ccd4")


def box_lines(boxes: np.ndarray) -> list[np.ndarray]:
    """Give the outline of each box and its heading line as ``(7, 2)`` of (y, x), the order of the picture's axes."""
    boxes = np.asarray(boxes, float).reshape(-1, 7)
    offsets = OUTLINE * boxes[:, None, 3:5]
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x = boxes[:, 0, None] + offsets[..., 0] * cos - offsets[..., 1] * sin
    y = boxes[:, 1, None] + offsets[..., 0] * sin + offsets[..., 1] * cos
    return list(np.stack([y, x], axis=-1))


def color_of(label: int) -> str:
    """Give the colour of a class."""
    return CLASS_COLORS[label % len(CLASS_COLORS)]


def _extent(view: Birdview) -> tuple[float, float, float, float]:
    """Enclose the points, or at least the boxes; ten metres around the sensor where there is neither."""
    boxes = [np.asarray(item, float).reshape(-1, 7) for item in (view.gt_boxes, *(p.boxes for p in view.panels))]
    places = np.concatenate([np.asarray(view.points, float)[:, :2], *(item[:, :2] for item in boxes)])
    places = places[np.isfinite(places).all(axis=1)]
    if not len(places):
        return (-10.0, -10.0, 10.0, 10.0)
    low, high = places.min(axis=0) - MARGIN, places.max(axis=0) + MARGIN
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _legend(panels: Sequence[BirdviewPanel], class_names: Sequence[str]) -> list[Line2D]:
    labels = sorted({int(label) for panel in panels for label in panel.labels})
    names = [class_names[label] if label < len(class_names) else f"class {label}" for label in labels]
    detected = [Line2D([], [], color=color_of(label), label=name) for label, name in zip(labels, names, strict=True)]
    return [Line2D([], [], color=GROUND_TRUTH, linewidth=2.6, label="ground truth"), *detected]
