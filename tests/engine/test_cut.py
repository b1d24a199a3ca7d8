"""Choosing the cut through the command: budgets, rules, curves, and that a refused one writes nothing."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from random_cut import randomize_norms
from tiny_world import command, contents

from cakdp_ext.checkpoint import write_checkpoint
from cakdp_ext.config import ConfigError, load_config
from cakdp_ext.engine.build import build_full, build_student
from cakdp_ext.engine.cut import LATENCY_STEPS, Place
from cakdp_ext.engine.data import build_split
from cakdp_ext.engine.measure import cost_frames, measure_cost
from cakdp_ext.engine.prune import ask_for, cuts_of, require_made_with, required_pruning
from cakdp_ext.engine.runs import RunFolder
from cakdp_ext.engine.train import find_plan
from cakdp_ext.pruning import LatencyStats, channel_graph, count_parameters, load_plan, model_fingerprint, save_scores
from cakdp_ext.types import FilterScores

CPU = torch.device("cpu")
TAGS = iter(range(1000))


@pytest.fixture(scope="session")
def scored(world, tmp_path_factory):
    """A student as if trained and scored: what must be said after ``--set`` to plan from it."""
    folder = tmp_path_factory.mktemp("scored")
    geometry = build_split(world.config("second"), "val").geometry
    torch.manual_seed(0)
    full = build_full(world.config("second"), geometry)
    randomize_norms(full)
    write_checkpoint(folder / "full.pth", full, {"epoch": 1, "settings": {"DATA_CONFIG.NUM_HELD_OUT": "2"}})
    random = np.random.default_rng(0)
    values = {layer.name: random.random(layer.num_filters) for layer in channel_graph(full, geometry).prunable}
    frames = tuple(build_split(world.config("second"), "held_out").frame_ids)
    scores = FilterScores(values, model_fingerprint(full), "channel", "held_out", frames, "0")
    save_scores(folder / "scores.npz", scores)
    return ["MODEL.PRUNING.STUDENT.CKPT", str(folder / "full.pth"), "MODEL.PRUNING.SCORES", str(folder / "scores.npz")]


@pytest.fixture
def prune(world, scored):
    """Run the command in a fresh run folder; gives its outcome and the folder."""

    def run_it(*flags, tag=None):
        tag = tag or f"cut{next(TAGS)}"
        flags = flags if "--frames" in flags else ("--frames", 1, *flags)
        return world.command("prune", "second_cakdp", *flags, "--set", *scored, tag=tag), world.run("second_cakdp", tag)

    return run_it


@pytest.fixture
def config(world, scored):
    return world.config("second_cakdp", *scored)


def built(config, plan):
    return build_student(config, build_split(config, "val").geometry, plan).model.eval()


@pytest.mark.parametrize("flags", [(), ("--round-to", 4, "--min-filters", 2, "--layers", "backbone_3d.conv1")])
@pytest.mark.parametrize(("kind", "amount"), [("params", "150K"), ("macs", "40M")])
def test_a_budget_is_met_by_the_network_that_is_trained_and_one_more_filter_would_not(
    prune, config, kind, amount, flags
):
    outcome, run = prune(f"--{kind}", amount, "--frames", 4, *flags)
    assert outcome.code == 0, outcome.err
    plan = load_plan(run.plan)
    frames = cost_frames(build_split(config, "val"), CPU)
    reached = getattr(measure_cost(built(config, plan), frames), kind)
    assert reached == plan.source["reached"] <= plan.source[kind]
    said = {name[2:].replace("-", "_"): value for name, value in zip(flags[::2], flags[1::2], strict=True)}
    rules = {"min_filters": said.get("min_filters"), "round_to": said.get("round_to"), "protect": said.get("layers")}
    cuts = cuts_of(ask_for(config, {kind: amount}, rules), run, Place(CPU))
    rung = next(n for n in range(cuts.ladder.highest) if len(cuts.ladder.kept(n)) == plan.source["decisions"][0])
    above = getattr(cuts.count(cuts.plan(cuts.ladder.kept(rung + 1))), kind)
    assert above > plan.source[kind]
    if flags:
        assert all(len(k) % 4 == 0 or len(k) == plan.num_filters[n] for n, k in plan.keep_indices.items())
        assert len(plan.keep_indices["backbone_3d.conv1.0.0"]) == plan.num_filters["backbone_3d.conv1.0.0"]
        assert plan.source["protect"] == ["backbone_3d.conv1"]


def test_the_command_shows_the_cut_with_its_costs_and_draws_it(prune, config):
    outcome, run = prune("--keep", 0.4, "--frames", 4)
    plan = load_plan(run.plan)
    assert plan.source["keep_ratio"] == 0.4
    lines = outcome.out.splitlines()
    before, after = (next(line for line in lines if line.startswith(f"{when} the cut")) for when in ("before", "after"))
    cut_student = built(config, plan)
    assert f" {count_parameters(cut_student):,} (" in after
    assert f" {count_parameters(built(config, cuts_of(config, run, Place()).by_ratio(1.0))):,} " in before
    assert f"{measure_cost(cut_student, cost_frames(build_split(config, 'val'), CPU)).macs / 1e9:.3g}" in after
    assert (run.path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.suffix for path in run.path.iterdir()) == [".json", ".log", ".png"]
    assert "latency p50 / p90 [ms]" in outcome.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--params", "10"),
            r"MODEL.PRUNING.PARAMS 10 cannot be met: cuts of this network by CaPr with MIN_FILTERS 4 have",
        ),
        (("--macs", "0.1M", "--round_to", 8), "cuts of this network by CaPr with MIN_FILTERS 4 and ROUND_TO 8 have "),
        (("--latency", "0.001ms"), "MODEL.PRUNING.LATENCY 0.001ms cannot be met"),
        (
            ("--keep", 0.5, "--protect", "conv9"),
            "PROTECT 'conv9' fits no layer; layers that can be cut: backbone_3d.",
        ),
        (("--params", "many"), "PARAMS must be a number above 0, like 1.5M or 30G, got 'many'"),
        (("--sweep", 0.5, 0.01), "KEEP_RATIO 0.01 keeps 7 filters, but MIN_FILTERS 4 asks for"),
        (("--sweep", 2.0), "KEEP_RATIO must be a number above 0 and at most 1, got 2.0"),
        (("--with_latency",), "--with_latency belongs to --sweep"),
        (("--min_filters", -1), "MIN_FILTERS must be a whole number of at least 0, got -1"),
    ],
)
def test_what_cannot_be_met_is_told_and_writes_nothing(prune, flags, message):
    outcome, run = prune(*flags)
    assert message in outcome.error
    assert not run.path.exists()


def test_a_refused_budget_leaves_an_older_plan_alone(prune):
    _, run = prune("--keep", 0.5, tag="older")
    before = contents(run)
    outcome, _ = prune("--params", "10", tag="older")
    assert outcome.code == 2
    assert contents(run) == before


@pytest.mark.parametrize("flags", [("--keep", 0.5), ("--sweep", 0.5)])
def test_a_dry_run_shows_and_writes_nothing(prune, flags):
    outcome, run = prune(*flags, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "nothing is written" in outcome.out
    assert not run.path.exists()


def test_a_budget_above_the_whole_network_cuts_nothing_and_says_so(prune):
    outcome, run = prune("--params", "1G")
    assert "the whole network is within PARAMS 1G: nothing is cut" in outcome.out
    assert load_plan(run.plan).keep_ratio == 1.0


def fake_times(cuts, monkeypatch, noise=0.0):
    """Let a cut take a microsecond for a thousand multiply-accumulates; gives what was timed."""
    timed, random = [], np.random.default_rng(0)

    def time(plan):
        value = cuts.count(plan).macs / 1e6 * (1 + noise * random.uniform(-1, 1))
        timed.append(value)
        return LatencyStats(value, value, value, value, 10)

    monkeypatch.setattr(cuts, "time", time)
    return timed


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.1])
def test_latency_is_searched_over_few_measured_cuts(config, monkeypatch, share, tmp_path):
    whole = cuts_of(config, RunFolder(tmp_path), Place(CPU, 2))
    most = whole.count(whole.by_ratio(1.0)).macs / 1e6
    cuts = cuts_of(ask_for(config, {"latency": share * most}, {}), RunFolder(tmp_path), Place(CPU, 2))
    timed = fake_times(cuts, monkeypatch)
    plan = cuts.choose()
    reached = cuts.count(plan).macs / 1e6
    assert reached == plan.source["reached"]
    assert reached in timed
    assert len(timed) <= LATENCY_STEPS + 2
    assert reached == max(value for value in timed if value <= share * most)
    if share < 1:
        assert reached > (share - 0.06) * most


def test_latency_of_every_candidate_is_measured_and_printed(prune):
    outcome, run = prune("--latency", "1000s", "--frames", 2)
    assert outcome.out.count("measured p50") == 1
    assert "the whole network is within LATENCY" in outcome.out
    source = load_plan(run.plan).source
    assert source["reached"] > 0
    assert source["measured_on"] in outcome.out


def test_a_sweep_is_the_costs_of_its_cuts(prune, config):
    outcome, run = prune("--sweep", 0.75, 0.3, "--with_latency", "--frames", 2)
    assert outcome.code == 0, outcome.err
    with (run.path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["keep_ratio"]) for row in rows] == [0.3, 0.75]
    frames = cost_frames(build_split(config, "val"), CPU, 2)
    for row in rows:
        plan = cuts_of(config, run, Place()).by_ratio(float(row["keep_ratio"]))
        cost = measure_cost(built(config, plan), frames)
        assert int(row["params"]) == cost.params
        assert float(row["macs"]) == cost.macs
        assert float(row["activations"]) == cost.activations
        assert int(row["filters"]) == sum(map(len, plan.keep_indices.values()))
        assert 0 < float(row["latency_p50_ms"]) <= float(row["latency_p90_ms"])
        assert f"{cost.params:,}" in outcome.out
    assert (run.path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not run.plan.exists()


def test_a_sweep_without_ratios_leaves_out_what_cannot_be_cut(prune):
    outcome, run = prune("--sweep", "--min_filters", 9)
    rows = (run.path / "sweep.csv").read_text().splitlines()
    assert "left out: KEEP_RATIO 0.1 keeps" in outcome.out
    assert len(rows) > 5
    assert rows[-1].startswith("1.0,")
    assert rows[-1].endswith(",,")


def test_the_yaml_says_all_that_the_command_line_says(world, scored, tmp_path):
    """Planned by the YAML alone; then refused, as with a ratio, where another cut is asked for."""
    rules = {"ROUND_TO": 4, "PROTECT": ["backbone_3d.conv1"], "MIN_FILTERS": 2}
    files = {"STUDENT": {"CKPT": scored[1]}, "SCORES": scored[3]}
    said = world.variant(
        "second_cakdp", tmp_path, {"MODEL": {"PRUNING": {**files, "KEEP_RATIO": None, "PARAMS": "150K", **rules}}}
    )
    plain = world.variant("second_cakdp", tmp_path / "plain", {"MODEL": {"PRUNING": files}})
    flags = ["--params", "150K", "--round_to", 4, "--protect", "backbone_3d.conv1", "--min_filters", 2]
    by_yaml, by_flags = tmp_path / "yaml", tmp_path / "flags"
    for cfg, folder, argv in ((said, by_yaml, []), (plain, by_flags, flags)):
        assert command("prune", "--cfg", cfg, "--device", "cpu", "--output_dir", folder, *argv).code == 0
    first, second = (json.loads(next(folder.rglob("plan.json")).read_text()) for folder in (by_yaml, by_flags))
    assert first == second
    assert first["source"]["params"] == 150_000
    require_made_with(first["source"], required_pruning(load_config(said)), "x")
    pruning = required_pruning(world.config("second_cakdp"))
    with pytest.raises(ConfigError, match="x was made with PARAMS 150K, now KEEP_RATIO 0.5 is asked for; use another"):
        require_made_with(first["source"], pruning, "x")


def test_two_budgets_in_a_yaml_are_refused(world, scored):
    changed = ["MODEL.PRUNING", "{MACS: 30G}", *scored]
    outcome = world.command("prune", "second_cakdp", "--set", *changed, tag="two")
    assert "KEEP_RATIO 0.5 and MACS 30G contradict each other" in outcome.error


def test_training_by_a_plan_of_another_budget_warns(world, scored, prune, caplog):
    _, run = prune("--params", "150K", tag="warned")
    with caplog.at_level("WARNING", logger="cakdp_ext"):
        find_plan(world.config("second_cakdp"), run)
    assert "was made with PARAMS 150K, the YAML asks for KEEP_RATIO 0.5" in caplog.text


def test_searching_draws_no_random_numbers(config, tmp_path):
    state = torch.get_rng_state()
    cuts = cuts_of(ask_for(config, {"params": "150K"}, {}), RunFolder(tmp_path), Place(CPU, 1))
    cuts.choose()
    assert torch.equal(torch.get_rng_state(), state)
