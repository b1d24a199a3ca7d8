"""Build the native ops, ``cakdp_ext._C``, where PyTorch and a C++ compiler are at hand; pyproject.toml says the rest.

CAKDP_BUILD=auto (default) installs without native ops where they cannot be built, 1 makes that an error, 0 skips them.
CAKDP_CUDA=auto (default) adds the CUDA kernels where PyTorch has CUDA and nvcc is found, 1 makes their lack an error, 0
leaves them out. TORCH_CUDA_ARCH_LIST names the GPUs to build for; PyTorch takes those it finds by default.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.errors import BaseError, CCompilerError

SWITCH = "CAKDP_BUILD"
CUDA_SWITCH = "CAKDP_CUDA"
BUILD_FAILURES = (BaseError, CCompilerError, RuntimeError, OSError, subprocess.CalledProcessError)


def read_switch(name: str) -> str:
    """Return ``auto``, ``0`` or ``1``."""
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name} must be auto, 0 or 1, got {value!r}")
    if name in os.environ:
        print(f"cakdp-ext: {name}={value}")
    return value


def missing() -> str:
    """Name what the build lacks; nothing where it lacks nothing."""
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    if not any(map(shutil.which, compilers)):
        return f"there is no C++ compiler ({', '.join(compilers)})"
    try:
        importlib.import_module("torch")
    except ImportError as error:
        return f"PyTorch cannot be imported ({error}); install it first and give pip --no-build-isolation"
    return ""


def missing_for_cuda() -> str:
    """Name what the CUDA kernels lack; nothing where they lack nothing."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if CUDA_HOME is None or shutil.which("nvcc", path=str(Path(CUDA_HOME) / "bin")) is None:
        return "there is no nvcc; install the CUDA toolkit or set CUDA_HOME"
    return ""


def wants_cuda() -> bool:
    """Tell whether to build the CUDA kernels, and print why not."""
    switch = read_switch(CUDA_SWITCH)
    lacks = f"{CUDA_SWITCH}=0" if switch == "0" else missing_for_cuda()
    if lacks and switch == "1":
        raise SystemExit(f"cakdp-ext: {CUDA_SWITCH}=1, but {lacks}")
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST", "those found here")
    print(f"cakdp-ext: CUDA kernels: {f'no, {lacks}' if lacks else f'for {architectures}'}")
    return not lacks


def native_ops(optional: bool) -> Any:
    """Describe the extension; OpenMP comes from PyTorch's own library, so that thread counts are PyTorch's."""
    from torch.__config__ import parallel_info
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    has_cuda = wants_cuda()
    folders = ["cpu", *(["cuda", "cuda/torch"] if has_cuda else [])]
    flags = ["/O2"] if sys.platform == "win32" else ["-O3", "-g0", "-Wall", "-ffp-contract=off", "-fno-trapping-math"]
    if sys.platform == "linux" and "parallel backend: OpenMP" in parallel_info():
        flags.append("-fopenmp")
    root = Path(__file__).resolve().parent
    return (CUDAExtension if has_cuda else CppExtension)(
        "cakdp_ext._C",
        sources=["ops/schema.cpp", *sources(root, folders)],
        depends=[str(path.relative_to(root)) for path in sorted((root / "ops").glob("**/*.h"))],
        include_dirs=[str(root / "ops" / folder) for folder in ("include", *folders)],
        extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
        optional=optional,
    )


def sources(root: Path, folders: list[str]) -> list[str]:
    """List the C++ and CUDA sources in folders of ops/, relative to the root."""
    found = [path for folder in folders for path in sorted((root / "ops" / folder).iterdir())]
    return [str(path.relative_to(root)) for path in found if path.suffix in (".cpp", ".cu")]


def build_command() -> type:
    """Return the build command; whatever goes wrong in it, an optional extension is then left out."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except BUILD_FAILURES as error:
                if not all(extension.optional for extension in self.extensions):
                    raise
                print(f"cakdp-ext: {error}")
                print(f"cakdp-ext: installing without native ops, their build failed; {SWITCH}=1 makes that an error")

    return Build


def main() -> None:
    """Install, with native ops if they are wanted and possible."""
    switch = read_switch(SWITCH)
    lacks = f"{SWITCH}=0" if switch == "0" else missing()
    if lacks and switch == "1":
        raise SystemExit(f"cakdp-ext: {SWITCH}=1, but {lacks}")
    if lacks:
        print(f"cakdp-ext: installing without native ops, {lacks}; the PyTorch references run instead")
        setup()
        return
    setup(ext_modules=[native_ops(optional=switch == "auto")], cmdclass={"build_ext": build_command()})


main()
