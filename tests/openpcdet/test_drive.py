"""The commands under OpenPCDet's engine: what is prepared before its scripts start, and which flags go where."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml
from stand_in import make_checkout

from cakdp_ext.config import ConfigError
from cakdp_ext.engine import drive as driving
from cakdp_ext.engine.cli import run_command
from cakdp_ext.engine.drive import THEIR_SEED, launcher_words, require_their_seed
from cakdp_ext.openpcdet.hook import AfterImport
from cakdp_ext.pickles import dump_arrays

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


def tool(name):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a configuration, data and the stand-in for OpenPCDet."""
    root = make_checkout(tmp_path / "OpenPCDet")
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if not isinstance(finder, AfterImport)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "pcdet"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(root)
    monkeypatch.setenv("CAKDP_ENGINE", "openpcdet")
    monkeypatch.setenv("OPENPCDET_ROOT", str(root))
    monkeypatch.setattr(driving, "require_openpcdet", lambda root: None)
    monkeypatch.chdir(tmp_path)
    frames = [{"point_cloud": {"lidar_idx": f"{n:06d}"}, "image": {}} for n in range(6)]
    (tmp_path / "data").mkdir()
    dump_arrays(frames[:4], tmp_path / "data" / "infos_train.pkl")
    dump_arrays(frames[4:], tmp_path / "data" / "infos_val.pkl")
    tree = {
        "CLASS_NAMES": ["Car"],
        "DATA_CONFIG": {
            "DATASET": "KittiDataset",
            "DATA_PATH": "data",
            "DATA_SPLIT": {"train": "train", "test": "val"},
            "INFO_PATH": {"train": ["infos_train.pkl"], "test": ["infos_val.pkl"]},
            "NUM_HELD_OUT": 2,
        },
        "MODEL": {"CHANNELS": 3},
        "OPTIMIZATION": {"OPTIMIZER": "adam_onecycle", "PCT_START": 0.4},
    }
    write(tmp_path / "cfgs" / "kitti" / "net.yaml", tree)
    pruning = {"KEEP_RATIO": 0.5, "STUDENT": {"CFG": "net.yaml", "CKPT": "output/kitti/net/default"}}
    write(
        tmp_path / "cfgs" / "kitti" / "cut.yaml",
        {"_BASE_CONFIG_": "net.yaml", "MODEL": {"NAME": "Student", "PRUNING": pruning}},
    )
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "pcdet"]:
        del sys.modules[name]


def write(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))


@pytest.fixture
def command(place, capsys):
    """``command(tool, *words)`` -> exit code, what it printed."""

    def command(name, *words, cfg="cfgs/kitti/net.yaml"):
        code = run_command(tool(name).main, ["--cfg", cfg, *words])
        return code, "".join(capsys.readouterr())

    return command


def seen(run):
    return json.loads((run / "seen.json").read_text())


def test_training_goes_to_their_script_with_frames_held_out(command, place):
    assert command("train", "--extra_tag", "a", "--epochs", "3", "--set", "MODEL.CHANNELS", "4")[0] == 0
    run = place / "output" / "kitti" / "net" / "a"
    data = seen(run)["cfg"]["DATA_CONFIG"]
    assert seen(run)["cfg"]["MODEL"]["CHANNELS"] == 4
    assert data["DATA_PATH"] == str(place / "data")
    (file,) = data["INFO_PATH"]["train"]
    assert [info["point_cloud"]["lidar_idx"] for info in pickle.loads(Path(file).read_bytes())] == ["000001", "000002"]
    assert (run / "ckpt" / "checkpoint_epoch_3.pth").is_file()
    assert yaml.safe_load((run / "merged_config.yaml").read_text())["MODEL"]["CHANNELS"] == 4


def test_configuration_and_output_may_lie_anywhere(command, place, tmp_path_factory, monkeypatch):
    output = tmp_path_factory.mktemp("somewhere") / "runs"
    monkeypatch.chdir(place / "data")
    words = ("--output_dir", str(output), "--set", "DATA_CONFIG.DATA_PATH", ".")
    assert command("train", *words, cfg=str(place / "cfgs" / "kitti" / "net.yaml"))[0] == 0
    assert (output / "kitti" / "net" / "default" / "ckpt" / "checkpoint_epoch_2.pth").is_file()


def test_a_comparison_over_seeds_that_openpcdet_does_not_know_ends_before_anything_is_done(command, place):
    code, said = command("compare", "--seeds", "0", "666")
    assert code == 2
    assert "OpenPCDet's scripts know one seed, 666; leave --seeds out or set CAKDP_ENGINE=builtin" in said
    assert not (place / "output").exists()


def test_a_training_takes_the_seed_that_openpcdet_knows_and_no_other():
    require_their_seed("--seed", THEIR_SEED)
    with pytest.raises(ConfigError, match="one seed, 666; leave --seed out or set CAKDP_ENGINE=builtin"):
        require_their_seed("--seed", 1)


def test_a_killed_training_goes_on(command, place):
    ckpt = place / "output" / "kitti" / "net" / "default" / "ckpt"
    assert command("train")[0] == 0
    (ckpt / "checkpoint_epoch_2.pth").write_bytes(b"half a checkpoint")
    code, said = command("train")
    assert code == 0
    assert "checkpoint_epoch_2.pth cannot be read as a checkpoint" in said
    assert seen(ckpt.parent)["start"] == [2, 1]
    torch.save({**torch.load(ckpt / "checkpoint_epoch_1.pth"), "it": 3}, ckpt / "latest_model.pth")
    os.utime(ckpt / "latest_model.pth", (0, 0))
    (ckpt / "checkpoint_epoch_2.pth").unlink()
    command("train")
    assert seen(ckpt.parent)["start"] == [3, 1]


def test_no_training_starts_again_over_checkpoints_that_cannot_be_read(command, place):
    ckpt = place / "output" / "kitti" / "net" / "default" / "ckpt"
    command("train")
    for file in ckpt.iterdir():
        file.write_bytes(b"")
    code, said = command("train")
    assert code == 2
    assert f"None of {ckpt} can be read; empty it, or use another --extra_tag" in said
    assert all(not file.read_bytes() for file in ckpt.iterdir())


def test_no_training_goes_on_under_other_settings(command, place):
    command("train")
    code, said = command("train", "--set", "OPTIMIZATION.PCT_START", "0.5")
    assert code == 2
    assert "holds a training with OPTIMIZATION.PCT_START 0.4, now 0.5 is asked for; keep it" in said
    ckpt = "output/kitti/net/default"
    assert command("train", "--ckpt", ckpt, "--set", "OPTIMIZATION.PCT_START", "0.5")[0] == 0


def test_checkpoint_of_the_built_in_engine_gives_weights_only(command, place):
    command("train")
    ckpt = place / "output" / "kitti" / "net" / "default" / "ckpt" / "checkpoint_epoch_2.pth"
    torch.save({**torch.load(ckpt), "version": "cakdp_ext+1"}, ckpt)
    code, said = command("train")
    assert code == 2
    assert "was written by the built-in engine, whose optimizer is another; give it as --pretrained_model" in said
    words = ("--extra_tag", "other", "--pretrained_model", "output/kitti/net/default")
    assert command("train", *words)[0] == 0
    assert seen(ckpt.parents[2] / "other")["args"]["pretrained_model"] == str(Path("output", *ckpt.parts[-5:]))


def test_testing_takes_a_run_folder_the_run_itself_or_any_split(command, place):
    command("train")
    run = place / "output" / "kitti" / "net" / "default"
    assert command("test")[0] == 0
    assert seen(run)["args"]["ckpt"] == str(run / "ckpt" / "checkpoint_epoch_2.pth")
    assert command("test", "--extra_tag", "b", "--ckpt", "output/kitti/net/default", "--split", "held_out")[0] == 0
    data = seen(run.parent / "b")["cfg"]["DATA_CONFIG"]
    assert data["DATA_SPLIT"]["test"] == "held_out"
    (file,) = data["INFO_PATH"]["test"]
    assert [info["point_cloud"]["lidar_idx"] for info in pickle.loads(Path(file).read_bytes())] == ["000000", "000003"]
    assert command("test", "--eval_all", "--ckpt_dir", "output/kitti/net/default")[0] == 0
    assert seen(run)["args"]["ckpt_dir"] == "output/kitti/net/default/ckpt"


def test_plan_of_the_run_folder_is_handed_over(command, place):
    run = place / "output" / "kitti" / "cut" / "default"
    code, said = command("train", cfg="cfgs/kitti/cut.yaml")
    assert code == 2
    assert f"no pruning plan at {run / 'plan.json'}; run tools/score_filters.py and tools/prune.py" in said
    assert not run.exists()
    run.mkdir(parents=True)
    (run / "plan.json").touch()
    assert command("train", cfg="cfgs/kitti/cut.yaml")[0] == 0
    pruning = seen(run)["cfg"]["MODEL"]["PRUNING"]
    assert pruning["PLAN"] == str(run / "plan.json")
    assert pruning["STUDENT"]["CFG"] == str(place / "cfgs" / "kitti" / "net.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "cpu"), "tools/train.py does not take this command line, see above; CAKDP_ENGINE=builtin takes"),
        (("--set", "DATA_CONFIG.DATA_PATH", "gone"), "no data folder "),
        (("--set", "DATA_CONFIG.INFO_PATH.test", "[gone.pkl]"), "gone.pkl (INFO_PATH.test); make it with"),
        (("--set", "DATA_CONFIG.NUM_HELD_OUT", "4"), "NUM_HELD_OUT is 4, but the training split has 4 frames"),
        (("--set", "MODEL.DEPTH", "4"), "no key 'DEPTH' under MODEL"),
        (("--ckpt", "gone"), "no checkpoint at gone"),
        (("--pretrained_model", "gone"), "no checkpoint at gone"),
        (("--batch_size", "0"), "--batch_size 0 cannot be dealt out to 1 processes"),
        (("--epochs", "1"), "2 iterations in all are too few"),
        (("--openpcdet_root", "gone"), "--openpcdet_root gone is no checkout of OpenPCDet"),
    ],
)
def test_mistakes_end_in_one_line(command, words, message):
    code, said = command("train", *words)
    assert code == 2
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_yaml_without_model_is_named(command, place):
    write(place / "data.yaml", {"DATA_CONFIG": {}})
    code, said = command("train", cfg="data.yaml")
    assert code == 2
    assert "data.yaml has no CLASS_NAMES, MODEL, OPTIMIZATION" in said


def test_flag_alone_chooses_openpcdet(command, place, monkeypatch):
    monkeypatch.setenv("CAKDP_ENGINE", "")
    monkeypatch.delenv("OPENPCDET_ROOT")
    assert driving.drives_openpcdet(["--openpcdet_root", "x"])
    monkeypatch.setenv("CAKDP_ENGINE", "builtin")
    assert not driving.drives_openpcdet(["--openpcdet_root", "x"])


@pytest.mark.parametrize(("name", "flag"), [("train", "--epochs"), ("test", "--eval_all")])
def test_help_lists_the_flags_of_the_checkout_and_works_without_one(place, name, flag, capsys, monkeypatch):
    for root, expected in ((str(place / "OpenPCDet"), flag), ("gone", "is no checkout")):
        monkeypatch.setenv("OPENPCDET_ROOT", root)
        with pytest.raises(SystemExit) as done:
            tool(name).main(["--help"])
        assert done.value.code == 0
        assert expected in " ".join(capsys.readouterr().out.split())


def test_torchrun_is_found_by_itself():
    assert launcher_words(["--epochs", "2"], {}) == ["--epochs", "2"]
    words = ["--local_rank", "1", "--launcher", "pytorch"]
    assert launcher_words(["--epochs", "2"], TORCHRUN) == [*words, "--epochs", "2"]
    assert launcher_words(["--launcher=slurm", "--local-rank=0"], TORCHRUN) == ["--launcher=slurm", "--local_rank=0"]


def test_batch_of_all_processes_of_slurm_must_be_dealt_out(command, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    code, said = command("train", "--launcher", "slurm", "--batch_size", "6")
    assert code == 2
    assert "--batch_size 6 cannot be dealt out to 4 processes" in said


def test_batch_of_all_processes_must_be_dealt_out(command, monkeypatch):
    for variable, value in TORCHRUN.items():
        monkeypatch.setenv(variable, value)
    code, said = command("train", "--batch_size", "6")
    assert code == 2
    assert "--batch_size 6 cannot be dealt out to 4 processes" in said
