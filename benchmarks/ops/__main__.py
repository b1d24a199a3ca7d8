"""Print how long each op takes beside its reference, other libraries and what the machine could do at best.

One table, one run: our op, the same op in plain PyTorch, OpenPCDet's compiled op and another library where they are
there, and a bound in milliseconds: the least bytes and operations that the question asks for, at the memory bandwidth
and arithmetic measured in this run. Nothing is asserted about speed.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from pathlib import Path

import overlap_rows  # noqa: F401
import point_rows  # noqa: F401
import region_rows  # noqa: F401
import rivals
import torch
from case import ROWS, Run, difference
from clock import Peak, Times, measure_peak, peak_memory, references, timed
from scenes import Scene

from cakdp_ext.ops import native

COLUMNS = (
    "op", "size", "ours ms", "p90", "reference ms", "OpenPCDet ms", "other ms", "bound ms", "of", "x bound", "off by",
)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/ops", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch and scipy")
    parser.add_argument("--repeats", type=int, default=20, help="calls a row at most, after a warm-up")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows with this in their name")
    parser.add_argument("--quick", action="store_true", help="small sizes, one call each: to see that all runs")
    parser.add_argument("--markdown", action="store_true", help="a table for a page")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    if not any(args.only in name for name in ROWS):
        parser.error(f"--only {args.only}: no row has it in its name; they are {'; '.join(ROWS)}")
    return args


def processor(device: torch.device) -> str:
    """What the ops run on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", about.read_text()) if about.exists() else None
    return f"{model[1] if model else platform.processor()}, {torch.get_num_threads()} threads"


def why_not_native(device: torch.device) -> str:
    """Why our ops would be their references on a device; empty where they are compiled for it."""
    compiled = all(native.has_kernel(name, device.type) for name in native.NAMES)
    return native.REASON or ("" if compiled else f"not compiled for {device.type}")


def rival_time(name: str, run: Run, device: torch.device, repeats: int) -> str:
    """Milliseconds that another library takes, or why there are none."""
    if not rivals.LIBRARIES[name] or (name == rivals.OPENPCDET and device.type != "cuda"):
        return "absent"
    try:
        return milliseconds(timed(run, device, repeats).median)
    except Exception as error:  # noqa: BLE001 - whatever happens to another library, the table goes on
        print(f"{name} fails: {error}", file=sys.stderr)
        return "fails"


def measure(name: str, scene: Scene, peak: Peak, repeats: int) -> list[str]:
    """One row of the table, a cell a column."""
    case = ROWS[name](scene)
    ours: Times | None = None if why_not_native(scene.device) else timed(case.ours, scene.device, repeats)
    memory = [f"{peak_memory(case.ours, scene.device):.1f}"] if scene.device.type == "cuda" else []
    with references():
        reference = timed(case.ours, scene.device, repeats)
    theirs = {library: rival_time(library, run, scene.device, repeats) for library, run in case.rivals.items()}
    openpcdet = theirs.pop(rivals.OPENPCDET, "-")
    bound, of = peak.bound(case.work)
    return [
        name,
        case.size,
        milliseconds(ours.median) if ours else "-",
        milliseconds(ours.p90) if ours else "-",
        milliseconds(reference.median),
        openpcdet,
        ", ".join(f"{library} {took}" for library, took in theirs.items()) or "-",
        milliseconds(bound),
        of,
        f"{ours.median / bound:.1f}" if ours else "-",
        difference(ours.answer, reference.answer) if ours else "-",
        *memory,
    ]


def milliseconds(value: float) -> str:
    """Three figures or so."""
    return f"{value:.{4 if value < 0.1 else 3 if value < 1 else 2 if value < 100 else 0}f}"


def table(rows: list[list[str]], markdown: bool) -> str:
    """Rows under one another, words to the left and numbers to the right."""
    columns = []
    for head, *cells in zip(*rows, strict=True):
        to_left, width = head in ("op", "size", "of"), max(map(len, (head, *cells)))
        rule = ["-" * width if to_left else "-" * (width - 1) + ":"] if markdown else []
        columns.append([cell.ljust(width) if to_left else cell.rjust(width) for cell in (head, *rule, *cells)])
    lines = zip(*columns, strict=True)
    return "\n".join(f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip() for cells in lines)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    scene = Scene(device, args.quick, args.threads)
    peak = measure_peak(device, args.quick)
    print(f"PyTorch {torch.__version__}, {processor(device)}, float32; native ops: {why_not_native(device) or 'yes'}")
    print(f"measured: copy {peak.memory / 1e9:.1f} GB/s, matrix product {peak.arithmetic / 1e9:.0f} GFLOP/s")
    print(rivals.describe(), end="\n\n", flush=True)
    rows = [[*COLUMNS, "peak MiB"] if device.type == "cuda" else list(COLUMNS)]
    names = [name for name in ROWS if args.only in name]
    try:
        for place, name in enumerate(names, 1):
            print(f"[{place}/{len(names)}] {name}", file=sys.stderr, flush=True)
            rows.append(measure(name, scene, peak, 1 if args.quick else args.repeats))
    finally:
        print(table(rows, args.markdown))


if __name__ == "__main__":
    main()
