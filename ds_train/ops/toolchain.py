"""Compilers of the kernels in csrc/: where they are, what version, and the flags of each library.

A library has a kind: `cpu` (torch's headers and threads), `cuda` (nvcc alone, no torch), `emulated`
(the CUDA kernel's arithmetic on the CPU, for tests).
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch

from ds_train.errors import BuildError

Kind = Literal["cpu", "cuda", "emulated"]

_PATTERNS: dict[Kind, tuple[str, ...]] = {
    "cpu": ("*_cpu*.cpp", "layout.cpp"),
    "cuda": ("*_cuda.cu", "layout.cpp"),
    "emulated": ("*_emulated.cpp", "layout.cpp"),
}
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_FILE_FLAGS = re.compile(r"^// flags(?:\((\w+)\))?: (.+)$", re.MULTILINE)
_HEAD_CHARACTERS = 2000  # of a file, in which its flags may stand


@dataclass(frozen=True)
class Toolchain:
    """How the files of one library are compiled and linked."""

    compiler: tuple[str, ...]
    """A command; empty where there is none."""
    version: str
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    missing: str
    """What to say where there is no compiler."""


def csrc_dir() -> Path:
    """Folder of the sources: a link to ../csrc in a checkout, real in a wheel."""
    return Path(str(files("ds_train"))) / "csrc"


def sources(kind: Kind, folder: Path) -> list[Path]:
    """Files that are compiled into a library of this kind."""
    found = sorted({path for pattern in _PATTERNS[kind] for path in folder.glob(pattern)})
    if not any(path.name != "layout.cpp" for path in found):
        raise BuildError(f"{kind} kernels: no {_PATTERNS[kind][0]} in {folder}; install again")
    return found


def source_texts(kind: Kind, folder: Path) -> dict[str, str]:
    """Text of every source by name, with all that they include from the same folder."""
    waiting, texts = sources(kind, folder), {}
    while waiting:
        path = waiting.pop()
        texts[path.name] = path.read_text(encoding="utf-8")
        named = {folder / name for name in _INCLUDE.findall(texts[path.name])}
        waiting += [one for one in named if one.name not in texts and one.is_file()]
    return dict(sorted(texts.items()))


def file_flags(text: str, machine: str | None = None) -> list[str]:
    """Flags that a source asks for itself: `// flags: ...`, or `// flags(x86_64): ...`."""
    machine = machine or platform.machine()
    found = _FILE_FLAGS.findall(text[:_HEAD_CHARACTERS])
    return [flag for only, flags in found if only in ("", machine) for flag in flags.split()]


def toolchain(kind: Kind, arch: str | None, *, strict: bool) -> Toolchain:
    """Compiler and flags of a kind; `arch` (sm_90) is what nvcc compiles for."""
    if kind == "cuda":
        assert arch is not None
        return _nvcc(arch, strict)
    compile_flags = ["-O3", "-std=c++20", "-fPIC", "-Wall", "-Wextra"]
    compile_flags += ["-Werror"] if strict else []
    link_flags = ["-shared"]
    if kind == "cpu":
        from torch.utils.cpp_extension import include_paths, library_paths

        compile_flags += ["-fopenmp", *(f"-isystem{path}" for path in include_paths())]
        link_flags += ["-fopenmp", *(f"-L{path}" for path in library_paths())]
        link_flags += ["-ltorch_cpu", "-lc10"]
    command = _cxx()
    return Toolchain(
        command,
        _version(command),
        tuple(compile_flags),
        tuple(link_flags),
        f"{kind} kernels: no C++ compiler (looked for $CXX, c++, g++, clang++); install g++",
    )


def local_arch() -> str | None:
    """Architecture of this process's GPU (sm_90), None where there is none."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def find_nvcc() -> str | None:
    """Path of CUDA's compiler."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    for candidate in [*candidates, "nvcc", "/usr/local/cuda/bin/nvcc"]:
        if found := shutil.which(candidate):
            return found
    return None


def find_ninja() -> str | None:
    """Path of ninja: the Python package's, or the system's."""
    beside = Path(sys.executable).parent / "ninja"
    return shutil.which(beside) or shutil.which("ninja")


def _nvcc(arch: str, strict: bool) -> Toolchain:
    if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
        raise BuildError(f'cuda kernels: arch = "{arch}": must look like sm_90')
    number = arch.removeprefix("sm_")
    found = find_nvcc()
    command = (found,) if found else ()
    target = ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    compile_flags = ["-O3", "-std=c++17", *target, "-Xcompiler", "-fPIC,-Wall,-Wextra"]
    # registers and spills of every kernel stand in the log
    compile_flags += ["-Xptxas", "-v,-warn-spills,-warn-lmem-usage"]
    compile_flags += ["-Werror", "all-warnings"] if strict else []
    return Toolchain(
        command,
        _version(command),
        tuple(compile_flags),
        ("-shared", "-cudart", "static", *target),
        "cuda kernels: no nvcc (looked in $CUDA_HOME, $PATH, /usr/local/cuda); "
        "install the CUDA toolkit",
    )


def _cxx() -> tuple[str, ...]:
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return tuple(chosen) if shutil.which(chosen[0]) else ()
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return (found,)
    return ()


def _version(command: tuple[str, ...]) -> str:
    if not command:
        return ""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return done.stdout
