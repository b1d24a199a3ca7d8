"""Build the CUDA kernels for a processor: ``python tests/ops/cuda_on_cpu/build.py FOLDER`` makes ``FOLDER/_C.so``.

``CAKDP_EXTENSION=_C PYTHONPATH=FOLDER pytest tests/ops`` then runs the tests of the ops on them, on CPU tensors.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import run

import torch
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).resolve().parent
OPS = HERE.parents[2] / "ops"


def main(folder: Path) -> None:
    """Compile what is newer than its object file, then link."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [OPS / "schema.cpp", *sorted(OPS.glob("cuda/*.cu")), *sorted(OPS.glob("cuda/torch/*.cpp"))]
    headers = [*OPS.glob("**/*.h"), HERE / "cuda_runtime.h"]
    newest_header = max(header.stat().st_mtime for header in headers)
    objects = [folder / f"{source.parent.name}_{source.name}.o" for source in sources]
    stale = [
        (source, object_)
        for source, object_ in zip(sources, objects, strict=True)
        if not object_.exists() or object_.stat().st_mtime < max(newest_header, source.stat().st_mtime)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: compile_one(*pair), stale))
    libraries = [f"-L{path}" for path in library_paths()]
    link = [
        "g++",
        "-shared",
        *map(str, objects),
        "-o",
        str(folder / "_C.so"),
        *libraries,
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
    ]
    run(link, check=True)


def compile_one(source: Path, object_: Path) -> None:
    """Compile a .cu or .cpp file as C++, with the stand-in for CUDA's header before everything else."""
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    folders = [HERE, OPS / "include", OPS / "cuda", *include_paths(), sysconfig.get_path("include")]
    flags = [
        "-x",
        "c++",
        "-std=c++20",
        "-O1",
        "-ffp-contract=off",
        "-fPIC",
        "-DCAKDP_CUDA_ON_CPU",
        abi,
        *(f"-I{path}" for path in folders),
    ]
    run(["g++", *flags, "-c", str(source), "-o", str(object_)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
