"""Compiles csrc/ into libraries: once per sources, flags, torch, compiler and architecture.

A library lies in $DS_TRAIN_BUILD_DIR or ~/.cache/ds-train/ops, in a folder whose name is a hash of
all that went into it. It is made in a temporary folder and moved there in one step, by one process
at a time; a killed builder leaves neither a lock nor half a library.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ds_train.errors import BuildError
from ds_train.locks import locked
from ds_train.ops.toolchain import (
    Kind,
    Toolchain,
    csrc_dir,
    file_flags,
    find_ninja,
    local_arch,
    source_texts,
    sources,
    toolchain,
)
from ds_train.paths import default_cache_dir

_ERROR = re.compile(r"\b(fatal error|error)\s*:|^ptxas (fatal|error)|^nvcc fatal|undefined refer")
_NOISE = re.compile(r"^(ninja:|FAILED|\[\d+/\d+\]|collect2:)")


@dataclass(frozen=True)
class Built:
    """A library that is there."""

    kind: Kind
    arch: str
    """sm_90 of a GPU, x86_64 of a processor."""
    path: Path
    seconds: float | None
    """Of compiling; None when it was there before."""

    @property
    def log(self) -> Path:
        """Everything that the compiler said."""
        return self.path.with_name("build.log")


def library(kind: Kind, arch: str | None = None) -> Path:
    """Path of a compiled library, made now if it isn't there. Raises BuildError, one line."""
    return build(kind, arch).path


def build(
    kind: Kind, arch: str | None = None, *, strict: bool = False, folder: Path | None = None
) -> Built:
    """Compile a library, or find the one that was compiled before.

    Args:
        kind: which.
        arch: of the GPU, as nvcc names it (sm_90); that of this machine when left out.
        strict: a warning of the compiler is an error.
        folder: of the sources; csrc/ when left out.
    """
    folder = folder or csrc_dir()
    if kind == "cuda":
        arch = arch or local_arch()
        if arch is None:
            raise BuildError("cuda kernels: no GPU here; name its architecture (--arch sm_90)")
    elif arch is not None:
        raise BuildError(f"{kind} kernels: --arch {arch} is for cuda only")
    tools = toolchain(kind, arch, strict=strict)
    texts = source_texts(kind, folder)
    arch = arch or platform.machine()
    name = f"{kind}-{arch}-{_key(texts, tools.compile_flags, tools.link_flags, torch.__version__)}"
    root = build_dir()
    if not tools.compiler:
        return _of_any_compiler(kind, arch, root, name, tools)
    target = root / f"{name}-{_key(tools.version)[:6]}" / f"libds_train_{kind}.so"
    seconds = None if target.is_file() else _make(kind, folder, tools, target)
    return Built(kind, arch, target, seconds)


def build_dir() -> Path:
    """Folder of all libraries."""
    chosen = os.environ.get("DS_TRAIN_BUILD_DIR")
    return Path(chosen).resolve() if chosen else default_cache_dir() / "ops"


def build_command(kind: Kind | None, archs: list[str]) -> None:
    """Compile what was asked for, and print a line for each library."""
    if kind is not None and kind != "cuda" and archs:
        raise BuildError(f"{kind} kernels: --arch is for cuda only")
    wanted: list[tuple[Kind, str | None]] = []
    if kind in (None, "cpu"):
        wanted.append(("cpu", None))
    if kind == "cuda" or archs or local_arch() is not None:
        wanted += [("cuda", arch) for arch in archs] or [("cuda", None)]
    faults = []
    for one, arch in wanted:
        try:
            built = build(one, arch)
        except BuildError as error:
            faults += error.faults
            continue
        how = "already built" if built.seconds is None else f"compiled in {built.seconds:.1f} s"
        print(f"{built.kind:<5} {built.arch:<7} {how}: {built.path}", flush=True)
    if faults:
        raise BuildError(faults)


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _of_any_compiler(kind: Kind, arch: str, root: Path, name: str, tools: Toolchain) -> Built:
    """What another machine, or an earlier compiler, has made of the same sources."""
    for path in sorted(root.glob(f"{name}-*/libds_train_{kind}.so")):
        return Built(kind, arch, path, None)
    raise BuildError(tools.missing)


def _make(kind: Kind, folder: Path, tools: Toolchain, target: Path) -> float | None:
    """Compile under the lock; seconds, or None if another process has done it meanwhile."""
    asked = time.time()
    root, name = target.parent.parent, target.parent.name
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{name}.lock"):
            if target.is_file():
                return None
            failure = root / f".{name}.error"
            # every rank of a machine asks at once: what fails need not fail eight times
            if failure.is_file() and failure.stat().st_mtime > asked:
                raise BuildError(failure.read_text(encoding="utf-8"))
            try:
                return _compile(kind, folder, tools, target)
            except BuildError as error:
                failure.write_text(str(error), encoding="utf-8")
                raise
    except OSError as error:
        raise BuildError(
            f"{kind} kernels: cannot write to {root} ({error.strerror}); set DS_TRAIN_BUILD_DIR"
        ) from None


def _compile(kind: Kind, folder: Path, tools: Toolchain, target: Path) -> float:
    ninja = find_ninja()
    if ninja is None:
        raise BuildError(f"{kind} kernels: no ninja; pip install ninja")
    root, name = target.parent.parent, target.parent.name
    for stale in root.glob(f".{name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}.tmp-", dir=root))
    # below `make -j` ninja would ask for the jobs of a make that does not know it, and warn
    environment = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
    try:
        work.chmod(0o755)
        (work / "build.ninja").write_text(_ninja_text(kind, folder, tools, target.name))
        started = time.monotonic()
        with (work / "build.log").open("w", encoding="utf-8") as log:
            code = subprocess.run(
                [ninja, "-v", "-C", str(work)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "LC_ALL": "C"},
                check=False,
            ).returncode
        if code != 0:
            kept = (work / "build.log").replace(root / f"{name}.log")
            line = _first_error(kept.read_text(encoding="utf-8", errors="replace"))
            raise BuildError(f"{kind} kernels: {line} (whole log: {kept})")
        work.replace(target.parent)
        return time.monotonic() - started
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _ninja_text(kind: Kind, folder: Path, tools: Toolchain, target: str) -> str:
    command = shlex.join(tools.compiler)
    lines = [
        "rule compile",
        f"  command = {_escaped(command, shlex.join(tools.compile_flags))} $extra -c $in -o $out",
        "rule link",
        f"  command = {_escaped(command)} $in {_escaped(shlex.join(tools.link_flags))} -o $out",
    ]
    objects = []
    for path in sources(kind, folder):
        objects.append(f"{path.name}.o")
        extra = file_flags(path.read_text(encoding="utf-8"))
        source = re.sub(r"([$: ])", r"$\1", str(path.absolute()))
        lines += [f"build {objects[-1]}: compile {source}", f"  extra = {shlex.join(extra)}"]
    lines += [f"build {target}: link {' '.join(objects)}", ""]
    return "\n".join(lines)


def _escaped(*commands: str) -> str:
    return " ".join(commands).replace("$", "$$")


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        # a command that is echoed names the compiler's flags, not an error
        if _ERROR.search(line) and not _NOISE.match(line):
            return line
    told = [line for line in lines if not _NOISE.match(line)]
    return (told or lines or ["the compiler said nothing"])[-1]
