import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from cakdp_ext import ops
from cakdp_ext.engine.report import Birdview, BirdviewPanel, Report, ReportRow, console_table, render_report, to_dict
from cakdp_ext.engine.report.figures import headlines
from cakdp_ext.engine.report.pictures import birdview_png, box_lines, color_of
from cakdp_ext.engine.report.seeds import seeds_png

CLASSES = ("Car", "Pedestrian")
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Reads a page strictly: every tag must be closed in order; keeps the cells of each table row."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.sources, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(["", dict(attrs).get("class")])
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1][0] += data

    def row(self, name):
        return next(row for row in self.rows if row[0][0].startswith(name))


def kitti_ap(car, pedestrian):
    return {
        f"{name}_{kind}/{level}_R40": ap + shift
        for name, ap in (("Car", car), ("Pedestrian", pedestrian))
        for kind, shift in (("3d", 0.0), ("bev", 5.0))
        for level in ("easy", "moderate", "hard")
    }


@pytest.fixture
def rows():
    return (
        ReportRow("teacher", 11_000_000, 81.6e9, 93.0, 101.0, 1830.0, kitti_ap(85.0, 57.0), "two stages"),
        ReportRow("SECOND", 5_000_000, 80.0e9, 48.0, 52.0, 1420.0, kitti_ap(78.0, 51.0)),
        ReportRow("compact", 1_600_000, 32.0e9, 24.0, 29.0, None, kitti_ap(83.0, 60.0), "<IoU> & mask"),
    )


@pytest.fixture
def view():
    generator = np.random.default_rng(0)
    boxes = np.array([[20.0, 5.0, -1.0, 4.0, 2.0, 1.5, 0.3], [30.0, -6.0, -1.0, 0.8, 0.6, 1.7, 1.0]])
    panels = (
        BirdviewPanel("before mask", boxes, np.array([0.9, 0.2]), np.array([0, 1])),
        BirdviewPanel("after mask", boxes[:1], np.array([0.9]), np.array([0])),
    )
    return Birdview("frame 7", generator.uniform((0, -20, -2), (40, 20, 1), (500, 3)), boxes[:1], panels)


@pytest.fixture
def report(rows, view):
    filters = {"backbone_3d.conv_input.0": (12, 16), "backbone_2d.blocks.0.1": (32, 128)}
    environment = {"torch": "2.6.0", "device": "CPU"}
    return Report("SECOND, halved", rows, CLASSES, filters, (view,), "MODEL:\n  NAME: <x>", environment, "SECOND")


def render(report, folder):
    text = render_report(report, folder).read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_parses_and_shows_every_row_and_part(report, tmp_path):
    text, page = render(report, tmp_path)
    for row in report.rows:
        assert page.row(row.name)
    shown = "".join(page.texts)
    for part in ("SECOND, halved", "12 / 16", "32 / 128", "44 of 144 filters", "NAME: <x>", "2.6.0", "<IoU> & mask"):
        assert part in shown
    assert "width:75.0%" in text
    assert "width:25.0%" in text


def test_the_page_needs_nothing_from_outside(report, tmp_path):
    text, page = render(report, tmp_path)
    assert len(page.sources) == 1
    assert page.sources[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?:|@import|url\(|<script", text)


def test_best_values_are_marked_lowest_cost_and_highest_ap(report, tmp_path):
    _, page = render(report, tmp_path)
    cells = {
        name: dict(zip([c[0] for c in page.rows[0]], page.row(name), strict=True)) for name in ("teacher", "compact")
    }
    best = {name: [title for title, cell in row.items() if cell[1] == "best"] for name, row in cells.items()}
    assert best["compact"] == ["Params [M]", "MACs [G]", "p50 [ms]", "p90 [ms]", "Pedestrian", "Mean AP"]
    assert best["teacher"] == ["Car"]
    assert cells["compact"]["Mean AP"][0] == "71.50"
    assert cells["compact"]["Memory [MB]"][0] == "–"


def test_headline_compares_the_last_row_with_the_reference(report):
    figures = [(item.figure, item.meaning, item.detail) for item in headlines(report)]
    assert figures == [
        ("3.1×", "smaller", "5.00 → 1.60 M parameters"),
        ("2.5×", "fewer MACs", "80.0 → 32.0 G a frame"),
        ("2.0×", "faster", "48.0 → 24.0 ms, median"),
        ("+7.00", "mean AP", "64.50 → 71.50, mean of 2"),
    ]


def test_headline_says_larger_and_slower_when_it_is(rows):
    found = headlines(Report("t", rows, reference="compact", result="SECOND"))
    assert [item.meaning for item in found] == ["larger", "more MACs", "slower", "mean AP"]
    assert [item.figure for item in found] == ["3.1×", "2.5×", "2.0×", "−7.00"]


def test_headline_leaves_out_what_was_not_measured(rows):
    bare = (rows[1], ReportRow("bare", params=2_500_000, ap={"Car_3d/moderate_R40": 80.0}))
    assert [item.figure for item in headlines(Report("t", bare))] == ["2.0×"]


def test_json_holds_every_figure_and_the_rows_come_back(report, tmp_path):
    render_report(report, tmp_path)
    tree = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert tree == to_dict(report)
    assert tuple(ReportRow(**row) for row in tree["rows"]) == report.rows
    assert tree["filters_per_layer"] == {"backbone_3d.conv_input.0": [12, 16], "backbone_2d.blocks.0.1": [32, 128]}
    assert (tree["settings"], tree["environment"]) == (report.settings, report.environment)
    (view,) = tree["birdviews"]
    assert view["num_points"] == 500
    assert view["gt_boxes"] == report.birdviews[0].gt_boxes.tolist()
    assert view["panels"][0]["boxes"] == report.birdviews[0].panels[0].boxes.tolist()


@pytest.mark.parametrize("rows", [(), (ReportRow("only"),), (ReportRow("a"), ReportRow("b"))])
def test_a_report_with_nothing_in_it_survives(rows, tmp_path):
    _, page = render(Report("empty", rows), tmp_path)
    assert [page.row(row.name)[1:] for row in rows] == [[["–", None]] * 5] * len(rows)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["title"] == "empty"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_that_are_not_finite_count_as_missing(value, tmp_path):
    rows = (ReportRow("a", macs=1e9, ap={"x": 1.0, "y": 2.0}), ReportRow("b", macs=value, ap={"x": value, "y": 3.0}))
    _, page = render(Report("t", rows), tmp_path)
    assert [cell[0] for cell in page.row("b")][1:] == ["–"] * 6 + ["3.00", "–"]
    tree = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert tree["rows"][1]["macs"] is None
    assert tree["rows"][1]["ap"] == {"x": None, "y": 3.0}


EMPTY = BirdviewPanel("nothing", np.empty((0, 7)), np.empty(0), np.empty(0, int))


@pytest.mark.parametrize("panels", [(), (EMPTY,), (EMPTY, EMPTY)])
@pytest.mark.parametrize("num_points", [0, 3])
def test_frames_without_points_labels_or_detections_survive(panels, num_points, tmp_path):
    view = Birdview("void", np.zeros((num_points, 3)), np.empty((0, 7)), panels)
    _, page = render(Report("t", (), birdviews=(view,)), tmp_path)
    assert len(page.sources) == 1


def test_outlines_are_the_corners_of_the_boxes(view):
    boxes = view.panels[0].boxes
    corners = ops.box_corners(torch.from_numpy(boxes))[..., [1, 0]]
    for outline, expected in zip(box_lines(boxes), corners.numpy(), strict=True):
        drawn = {tuple(point) for point in np.round(outline[:4], 4)}
        assert drawn == {tuple(point) for point in np.round(expected, 4)}


def test_the_heading_line_points_forward():
    (outline,) = box_lines(np.array([[10.0, 4.0, 0.0, 4.0, 2.0, 1.0, np.pi / 2]]))
    np.testing.assert_allclose(outline[5:], [[6.0, 10.0], [4.0, 10.0]], atol=1e-9)


def count_pixels(png, color):
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels - wanted).sum(axis=-1) < 12).sum())


def test_sure_detections_stand_out_and_unsure_ones_fade():
    boxes = np.array([[0.0, 0.0, 0.0, 8.0, 6.0, 1.0, 0.0]])

    def draw(score):
        panel = BirdviewPanel("p", boxes, np.array([score]), np.array([1]))
        return birdview_png(Birdview("v", np.empty((0, 3)), np.empty((0, 7)), (panel,)), CLASSES)

    sure, unsure = (count_pixels(draw(score), color_of(1)) for score in (1.0, 0.05))
    assert sure > unsure + 200


def test_panels_stand_side_by_side(view):
    one = Image.open(io.BytesIO(birdview_png(Birdview("v", view.points, view.gt_boxes, view.panels[:1]), CLASSES)))
    two = Image.open(io.BytesIO(birdview_png(view, CLASSES)))
    assert two.width == 2 * one.width
    assert two.height == one.height


def test_a_class_without_a_name_is_drawn_all_the_same(view):
    assert Image.open(io.BytesIO(birdview_png(view, ()))).format == "PNG"


def green_spots(rows, reference=""):
    """How many points of seeds lie beside each other in each row of the picture."""
    pixels = np.asarray(Image.open(io.BytesIO(seeds_png(rows, reference))).convert("RGB")).astype(int)
    green = (pixels[..., 1] - pixels[..., 0]) > 60
    starts = green[:, 1:] & ~green[:, :-1]
    lines = np.flatnonzero(starts.any(axis=1))
    rows_of_spots = np.split(lines, np.flatnonzero(np.diff(lines) > 1) + 1)
    return [int(starts[group].sum(axis=1).max()) for group in rows_of_spots if len(group)]


def test_every_training_of_every_row_is_a_point():
    rows = [
        ReportRow("teacher"),
        ReportRow("plain", mean_ap_of_seeds=(60.0, 61.0, 65.0)),
        ReportRow("taught", mean_ap_of_seeds=(63.0, 70.0)),
    ]
    assert green_spots(rows, reference="plain") == [3, 2]
    assert green_spots(rows, reference="teacher") == [3, 2]


def test_the_picture_of_the_seeds_is_there_only_where_rows_have_several(rows, tmp_path):
    several = [*rows, ReportRow("taught", mean_ap_of_seeds=(63.0, float("nan")))]
    assert "Mean AP of each training" in render_report(Report("r", tuple(several)), tmp_path).read_text()
    assert "Mean AP of each training" not in render_report(Report("r", tuple(rows)), tmp_path).read_text()


def test_a_report_that_fails_leaves_the_old_one(report, tmp_path):
    render_report(report, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        render_report(Report("new", (), environment={"torch": object()}), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert set(before) == {"report.html", "report.json"}


@pytest.mark.parametrize(("boxes", "scores"), [((2, 5), 2), ((2, 7), 3), ((2, 7, 1), 2)])
def test_arrays_that_do_not_fit_are_refused(boxes, scores):
    with pytest.raises(ValueError, match=r"panel 'p' expected boxes \(n, 7\)"):
        BirdviewPanel("p", np.zeros(boxes), np.zeros(scores), np.zeros(2, int))


@pytest.mark.parametrize(("points", "boxes"), [((4, 2), (1, 7)), ((4, 3), (1, 8)), ((0,), (1, 7))])
def test_a_frame_that_does_not_fit_is_refused(points, boxes):
    with pytest.raises(ValueError, match=r"frame 'v' expected points \(N, 3\)"):
        Birdview("v", np.zeros(points), np.zeros(boxes), ())


def test_rows_must_tell_themselves_apart():
    with pytest.raises(ValueError, match="a stands there twice"):
        Report("t", (ReportRow("a"), ReportRow("a")))


@pytest.mark.parametrize("role", ["reference", "result"])
def test_an_unknown_row_is_refused(role):
    with pytest.raises(ValueError, match=f"{role} 'z' is no row of the report; rows: a"):
        Report("t", (ReportRow("a"),), **{role: "z"})


def test_console_table_is_aligned_and_drops_empty_columns(rows):
    lines = console_table(rows[1:]).splitlines()
    assert (
        lines[0].split()
        == "Model Params [M] MACs [G] p50 [ms] p90 [ms] Memory [MB] Car Pedestrian Mean AP Note".split()
    )
    assert lines[3].split()[:6] == ["compact", "1.60", "32.0", "24.0", "29.0", "–"]
    assert {line.index(end) + len(end) for line, end in zip(lines[2:], ("64.50", "71.50"), strict=True)} == {
        len(lines[1]) - 14
    }
    assert console_table((ReportRow("bare", params=1_000_000),)).split() == [
        "Model",
        "Params",
        "[M]",
        "-----",
        "----------",
        "bare",
        "1.00",
    ]


def test_console_table_shows_the_metrics_that_were_asked_for(rows):
    table = console_table(rows, ["Car_bev/easy_R40"])
    assert "Car_bev/easy_R40" in table
    assert "88.00" in table
    assert "Pedestrian" not in table
