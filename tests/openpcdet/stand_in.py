"""A checkout with the interface of OpenPCDet's scripts and nothing behind it: a linear layer that is never trained."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "pcdet/__init__.py": "__version__ = '0'\n",
    "pcdet/config.py": """
from pathlib import Path

from easydict import EasyDict

cfg = EasyDict(ROOT_DIR=Path(__file__).resolve().parents[1], LOCAL_RANK=0)


def cfg_from_yaml_file(cfg_file, config):
    raise AssertionError("this reader nests no bases")
""",
    "pcdet/utils/__init__.py": "",
    "pcdet/utils/common_utils.py": """
def init_dist_pytorch(tcp_port, local_rank, backend="nccl"):
    raise AssertionError("nobody asked for several processes")
""",
    "pcdet/models/__init__.py": """
import torch


class Net(torch.nn.Linear):
    def _load_state_dict(self, state, *, strict=True):
        own = self.state_dict()
        fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
        self.load_state_dict(fitting, strict=strict)

    def load_params_from_file(self, filename, logger=None, to_cpu=False):
        self._load_state_dict(torch.load(filename)["model_state"], strict=False)

    def load_params_with_optimizer(self, filename, to_cpu=False, optimizer=None, logger=None):
        content = torch.load(filename)
        self._load_state_dict(content["model_state"])
        return content["it"], content["epoch"]


def build_network(model_cfg, num_class, dataset):
    net = Net(model_cfg.CHANNELS, 1)
    net.is_student = model_cfg.get("NAME") == "Student"
    return net
""",
    "tools/_init_path.py": "import sys\nsys.path.insert(0, '../')\n",
    "tools/helper_of_the_scripts.py": "",
    "tools/test.py": """
import _init_path
import argparse
import json
import sys
import time

import helper_of_the_scripts
from pcdet.config import cfg, cfg_from_yaml_file
from pcdet.models import build_network


def add_common(parser):
    parser.add_argument("--cfg_file")
    for name in ("--extra_tag", "--ckpt", "--pretrained_model"):
        parser.add_argument(name)
    for name in ("--batch_size", "--local_rank", "--start_epoch", "--max_waiting_mins"):
        parser.add_argument(name, type=int, default=0 if name[2] in "sm" else None)
    parser.add_argument("--launcher", default="none")


def parse_config():
    parser = argparse.ArgumentParser()
    add_common(parser)
    parser.add_argument("--eval_all", action="store_true")
    parser.add_argument("--ckpt_dir")
    args = parser.parse_args()
    cfg_from_yaml_file(args.cfg_file, cfg)
    cfg.TAG, cfg.EXP_GROUP_PATH = "wrong", "wrong"
    return args, cfg


def folder_of(args):
    folder = cfg.ROOT_DIR / "output" / cfg.EXP_GROUP_PATH / cfg.TAG / args.extra_tag
    (folder / "ckpt").mkdir(parents=True, exist_ok=True)
    return folder


def record(folder, args, **more):
    seen = {"argv": sys.argv, "path": sys.path, "args": vars(args), "cfg": dict(cfg), **more}
    (folder / "seen.json").write_text(json.dumps(seen, default=str))


def get_no_evaluated_ckpt(ckpt_dir, ckpt_record_file, args):
    done = ckpt_record_file.read_text().split()
    for file in sorted(ckpt_dir.glob("checkpoint_epoch_*.pth")):
        epoch = file.stem.rpartition("_")[2]
        if epoch not in done and int(epoch) >= args.start_epoch:
            return epoch, file
    return -1, None


def repeat_eval_ckpt(model, loader, args, folder, logger, ckpt_dir, dist_test=False):
    list_of_tested = folder / "tested.txt"
    list_of_tested.touch()
    while True:
        epoch, file = get_no_evaluated_ckpt(ckpt_dir, list_of_tested, args)
        if file is None:
            time.sleep(30)
            continue
        model.load_params_from_file(file)
        list_of_tested.write_text(list_of_tested.read_text() + f"{epoch} ")


def main():
    args, cfg = parse_config()
    folder = folder_of(args)
    record(folder, args)
    model = build_network(model_cfg=cfg.MODEL, num_class=1, dataset=None)
    if args.eval_all:
        repeat_eval_ckpt(model, None, args, folder, None, folder / "ckpt")
    else:
        model.load_params_from_file(filename=args.ckpt)
""",
    "tools/train_utils/__init__.py": "",
    "tools/train_utils/train_utils.py": """
import torch


def save_checkpoint(state, filename="checkpoint"):
    torch.save(state, f"{filename}.pth")


def train_model(model, start_epoch, total_epochs, folder):
    for number in range(start_epoch + 1, total_epochs + 1):
        state = {"model_state": model.state_dict(), "it": 2 * number, "epoch": number, "version": "pcdet+0"}
        save_checkpoint(state, filename=folder / f"checkpoint_epoch_{number}")
""",
    "tools/train.py": """
import _init_path
import argparse
from test import add_common, folder_of, record, repeat_eval_ckpt

from pcdet.config import cfg, cfg_from_yaml_file
from pcdet.models import build_network
from train_utils.train_utils import train_model


def parse_config():
    parser = argparse.ArgumentParser()
    add_common(parser)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    cfg_from_yaml_file(args.cfg_file, cfg)
    cfg.TAG, cfg.EXP_GROUP_PATH = "wrong", "wrong"
    return args, cfg


def build_scheduler(optimizer, total_iters_each_epoch, total_epochs, last_epoch, optim_cfg):
    return 1 / int(total_iters_each_epoch * total_epochs * optim_cfg.PCT_START)


def main():
    args, cfg = parse_config()
    folder = folder_of(args)
    model = build_network(model_cfg=cfg.MODEL, num_class=1, dataset=None)
    it = epoch = 0
    if args.pretrained_model:
        model.load_params_from_file(filename=args.pretrained_model)
    if args.ckpt:
        it, epoch = model.load_params_with_optimizer(args.ckpt)
    build_scheduler(None, total_iters_each_epoch=2, total_epochs=args.epochs, last_epoch=-1, optim_cfg=cfg.OPTIMIZATION)
    record(folder, args, start=[it, epoch])
    if cfg.MODEL.get("FAILS"):
        raise ValueError("a fault of theirs")
    train_model(model, epoch, args.epochs, folder / "ckpt")
    args.start_epoch = args.epochs
    repeat_eval_ckpt(model, None, args, folder, None, folder / "ckpt")
""",
}


def make_checkout(root: Path) -> Path:
    """Write the files."""
    for name, text in FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip(), encoding="utf-8")
    return root
