"""What ``use_cpu()`` changes, on a made-up OpenPCDet: refusals, imports, devices, checkpoints, processes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from cakdp_ext.openpcdet.cpu.rotate_iou import rotate_iou_gpu_eval

ABSENT_HERE = [name for name in ("av2", "kornia") if importlib.util.find_spec(name) is None]


@pytest.fixture
def report(made_up_report):
    return made_up_report


def test_refusals_say_what_to_do_and_change_nothing(report):
    refusals = report["refusals"]
    assert "use_cpu() came after `import pcdet`" in refusals["late"]
    assert "machines without CUDA" in refusals["beside_cuda"]
    assert "CUDA_VISIBLE_DEVICES=''" in refusals["beside_cuda"]
    assert refusals["untouched"]


def test_second_call_changes_nothing_even_after_the_import(report):
    assert report["again"]
    assert report["switch"] == "1"


def test_our_ops_stand_under_its_names(report):
    assert report["imports"]["ours"]
    assert report["imports"]["version"] == "7.8.9+cpu"


def test_ops_without_cpu_version_refuse_when_they_are_called(report):
    assert report["imports"]["only_on_cuda"].startswith("NotImplementedError: pcdet.ops.bev_pool.bev_pool_ext.bev_pool")


@pytest.mark.skipif(len(ABSENT_HERE) < 2, reason="av2 or kornia is installed")
def test_absent_packages_import_and_refuse_to_be_used(report):
    assert report["imports"]["absent"].startswith("ImportError: av2.utils.io.read_feather is used")
    assert report["imports"]["absent"].endswith("pip install av2")
    assert "kornia.losses.FocalLoss" in report["imports"]["absent_class"]
    assert report["imports"]["others"] == "ModuleNotFoundError: No module named 'av2'"  # the truth, to anyone else


def test_broken_packages_import_and_say_why_they_cannot_be_used(report):
    assert report["imports"]["broken"].endswith("does not load here: ImportError: libGL.so.1 is not there")
    assert report["imports"]["broken_parts"] == []
    assert "so3.quat_to_yaw is used, but its module does not load here" in report["imports"]["broken_so3"]


def test_tensors_stay_on_cpu(report):
    devices = report["devices"]
    assert devices["types"] == ["cpu"]
    assert (devices["dtype"], devices["int"]) == ("torch.float64", "torch.int32")
    assert devices["counts"] == [1, 4]  # one a process of this machine
    assert not devices["available"]


def test_checkpoints_of_gpus_and_with_numpy_numbers_load(report):
    checkpoints = report["checkpoints"]
    assert checkpoints["numbers"] == {"lr": 0.5, "steps": 3}
    assert checkpoints["weights"] == [[0, 1, 2]] * 2
    assert checkpoints["numpy"] == [True, True]


def test_nccl_means_gloo(report):
    assert report["distributed"] == {"backend": "gloo", "gradient": [[1, 1]]}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_follow_that_know_nothing_of_us(report, method):
    assert report["children"][method] == "cakdp_ext.openpcdet.ops.iou3d_nms_cuda"


PROGRAM = """
import json, sys, torch, beside
if __name__ == "__main__":
    print("RESULT", json.dumps([sys.argv, beside.NAME, str(torch.cuda.IntTensor(1).device)]))
"""


def test_any_program_runs_on_cpu(run_python, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text("NAME = 7")
    path = str(tmp_path / "program.py")
    assert run_python("-m", "cakdp_ext.openpcdet.cpu", path, "--flag", "1")[0] == [[[path, "--flag", "1"], 7, "cpu"]]


def test_program_without_a_name_says_how(run_python):
    with pytest.raises(AssertionError, match="usage: python -m cakdp_ext.openpcdet.cpu"):
        run_python("-m", "cakdp_ext.openpcdet.cpu", "-m")


@pytest.fixture
def rectangles():
    rng = np.random.default_rng(0)
    boxes = np.c_[rng.uniform(0, 4, (40, 2)), rng.uniform(1, 4, (40, 2)), rng.uniform(-3, 3, 40)]
    return boxes, boxes[:25] + rng.normal(0, 0.3, (25, 5))


def test_rotated_rectangles_turn_clockwise():
    long, turned = np.array([[0, 0, 4, 1, 0.5]]), np.array([[1.5 * np.cos(0.5), -1.5 * np.sin(0.5), 1, 1, 0.5]])
    assert rotate_iou_gpu_eval(long, turned, 2) == pytest.approx(1, abs=1e-5)
    turned[0, 1] *= -1
    assert rotate_iou_gpu_eval(long, turned, 2) < 0.1


def test_criteria_are_shares_of_one_area(rectangles):
    boxes, queries = rectangles
    area, size, query_size = (
        rotate_iou_gpu_eval(boxes, queries, 2),
        np.prod(boxes[:, 2:4], 1),
        np.prod(queries[:, 2:4], 1),
    )
    assert (area > 1).sum() > 100
    expected = {
        -1: area / (size[:, None] + query_size - area), 0: area / query_size, 1: area / size[:, None]
    }  # fmt: skip
    for criterion, values in expected.items():
        np.testing.assert_allclose(rotate_iou_gpu_eval(boxes, queries, criterion), values, atol=1e-5)


def test_no_rectangles_and_wrong_criteria(rectangles):
    boxes, _ = rectangles
    assert rotate_iou_gpu_eval(boxes[:0], boxes).shape == (0, 40)
    assert rotate_iou_gpu_eval(boxes, boxes[:0]).dtype == np.float32
    with pytest.raises(ValueError, match="-1 .IoU., 0, 1 or 2"):
        rotate_iou_gpu_eval(boxes, boxes, 3)


SIMULATED = """
import runpy, sys, numpy as np
boxes, queries = (np.load(name) for name in sys.argv[2:4])
rotate_iou = runpy.run_path(sys.argv[1])["rotate_iou_gpu_eval"]
np.save(sys.argv[4], [rotate_iou(boxes, queries, criterion) for criterion in (-1, 0, 1, 2)])
"""


@pytest.mark.parametrize("where", ["kitti/kitti_object_eval_python/rotate_iou.py", "once/once_eval/iou_utils.py"])
def test_its_own_kernels_in_a_simulator_say_the_same(checkout, rectangles, tmp_path, where):
    pytest.importorskip("numba")
    path = checkout / "pcdet" / "datasets" / where
    if not path.is_file():
        pytest.skip(f"this OpenPCDet has no {where}")
    names = [tmp_path / name for name in ("boxes.npy", "queries.npy", "found.npy")]
    for name, values in zip(names, rectangles, strict=False):
        np.save(name, values[:8])
    subprocess.run(
        [sys.executable, "-c", SIMULATED, path, *names], check=True, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    )
    ours = [rotate_iou_gpu_eval(rectangles[0][:8], rectangles[1][:8], criterion) for criterion in (-1, 0, 1, 2)]
    np.testing.assert_allclose(ours, np.load(names[2]), atol=1e-5)
