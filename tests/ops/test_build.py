"""Libraries are compiled once, whoever asks and whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ds_train.cli import main
from ds_train.errors import BuildError
from ds_train.ops import build as build_module
from ds_train.ops import toolchain
from ds_train.ops.build import build, build_dir
from ds_train.ops.toolchain import csrc_dir, file_flags

REPO = Path(__file__).resolve().parent.parent.parent
SOURCE = '#include "number.h"\nextern "C" int number() { return NUMBER; }\n'
COMPILER = """\
#!/bin/sh
case "$*" in
  *--version*) echo "a compiler"; exit ;;
  *" -c "*) echo x >> {folder}/compiled; while [ -e {folder}/slow ]; do sleep 0.05; done ;;
esac
exec c++ "$@"
"""
BUILD = """\
import sys
from pathlib import Path
from ds_train.errors import BuildError
from ds_train.ops.build import build
print("asking", flush=True)
try:
    print(build("emulated", folder=Path(sys.argv[1])).seconds is not None)
except BuildError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tiny sources, an empty build folder, and a compiler that counts."""
    monkeypatch.setenv("DS_TRAIN_BUILD_DIR", str(tmp_path / "built"))
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(folder=tmp_path))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "number_emulated.cpp").write_text(SOURCE)
    (sources / "number.h").write_text("#define NUMBER 42\n")
    return sources


def times_compiled(folder: Path) -> int:
    return len((folder.parent / "compiled").read_text().split())


@pytest.fixture
def builders(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that build the same; all of their children end with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    (folder.parent / "slow").unlink(missing_ok=True)
    for process in started:
        process.kill()
        process.wait()


def start_builder(folder: Path, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A process that asks for the library, and has just begun to."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    return process


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def test_the_second_time_nothing_is_compiled(folder: Path) -> None:
    first, second = build("emulated", folder=folder), build("emulated", folder=folder)
    assert first.seconds is not None and first.seconds > 0
    assert second.seconds is None
    assert second.path == first.path and first.path.is_file() and first.log.is_file()
    assert times_compiled(folder) == 1


def test_below_make_nothing_is_said_of_its_jobs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", " -j2 --jobserver-auth=98,99")
    assert "jobserver" not in build("emulated", folder=folder).log.read_text().lower()


def test_what_goes_into_a_library_decides_which_it_is(folder: Path) -> None:
    paths = [build("emulated", folder=folder).path]
    (folder / "number_emulated.cpp").write_text(SOURCE + "// more\n")
    paths.append(build("emulated", folder=folder).path)
    (folder / "number.h").write_text("#define NUMBER 43\n")
    paths.append(build("emulated", folder=folder).path)
    paths.append(build("emulated", folder=folder, strict=True).path)
    compiler = folder.parent / "compiler"
    compiler.write_text(compiler.read_text().replace("a compiler", "a newer compiler"))
    paths.append(build("emulated", folder=folder).path)
    assert len(set(paths)) == len(paths)
    (folder / "unused.h").write_text("#define NUMBER 44\n")
    assert build("emulated", folder=folder).path == paths[-1]


def test_a_failed_compilation_is_one_line(folder: Path) -> None:
    (folder / "number.h").write_text("#define NUMBER nothing\n")
    with pytest.raises(BuildError) as caught:
        build("emulated", folder=folder)
    message = str(caught.value)
    assert message.startswith("emulated kernels: ") and "\n" not in message
    assert "error: 'nothing' was not declared" in message.replace("‘", "'").replace("’", "'")
    log = Path(message.split("(whole log: ")[1].removesuffix(")"))
    assert "number_emulated.cpp" in log.read_text()
    assert not list(build_dir().glob(".*tmp-*"))
    (folder / "number.h").write_text("#define NUMBER 1\n")
    assert build("emulated", folder=folder).path.is_file()


def test_strict_makes_warnings_errors(folder: Path) -> None:
    (folder / "number.h").write_text("#define NUMBER 1; int unused\n")
    assert build("emulated", folder=folder).seconds is not None
    with pytest.raises(BuildError, match=r"error: unused variable"):
        build("emulated", folder=folder, strict=True)


def test_without_a_compiler_what_was_built_is_still_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build("emulated", folder=folder)
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    assert build("emulated", folder=folder).path == built.path
    (folder / "number.h").write_text("#define NUMBER 2\n")
    with pytest.raises(BuildError, match=r"^emulated kernels: no C\+\+ compiler .*$"):
        build("emulated", folder=folder)


def test_missing_tools_and_folders_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    with pytest.raises(BuildError, match=r"^cuda kernels: no nvcc .*install the CUDA toolkit$"):
        build("cuda", "sm_90")
    with pytest.raises(BuildError, match=r'^cuda kernels: arch = "90": must look like sm_90$'):
        build("cuda", "90")
    monkeypatch.setattr(build_module, "local_arch", lambda: None)
    with pytest.raises(BuildError, match=r"^cuda kernels: no GPU here; name its architecture .*$"):
        build("cuda")
    monkeypatch.setattr(build_module, "find_ninja", lambda: None)
    with pytest.raises(BuildError, match=r"^emulated kernels: no ninja; pip install ninja$"):
        build("emulated", folder=folder)
    monkeypatch.setenv("DS_TRAIN_BUILD_DIR", str(folder / "number.h" / "x"))
    with pytest.raises(BuildError, match=r"^emulated kernels: cannot write to .*DS_TRAIN_BUILD_"):
        build("emulated", folder=folder)
    with pytest.raises(BuildError, match=r"^emulated kernels: no \*_emulated.cpp in .*"):
        build("emulated", folder=folder.parent)


def test_processes_that_ask_at_once_compile_once(folder: Path, builders) -> None:
    (folder.parent / "slow").touch()
    first = start_builder(folder, builders)
    wait_for(folder.parent / "compiled")
    others = [start_builder(folder, builders) for _ in range(2)]
    time.sleep(0.3)
    (folder.parent / "slow").unlink()
    assert first.communicate(timeout=60)[0] == "True\n"
    assert [one.communicate(timeout=60)[0] for one in others] == ["False\n"] * 2
    assert times_compiled(folder) == 1


def test_processes_that_ask_at_once_fail_once(folder: Path, builders) -> None:
    (folder / "number.h").write_text("#define NUMBER nothing\n")
    (folder.parent / "slow").touch()
    first = start_builder(folder, builders)
    wait_for(folder.parent / "compiled")
    other = start_builder(folder, builders)
    time.sleep(0.3)
    (folder.parent / "slow").unlink()
    told = first.communicate(timeout=60)[0]
    assert "nothing" in told and other.communicate(timeout=60)[0] == told
    assert times_compiled(folder) == 1
    with pytest.raises(BuildError):  # who asks later tries again
        build("emulated", folder=folder)
    assert times_compiled(folder) == 2


def test_a_killed_builder_leaves_no_lock_and_no_half_library(folder: Path, builders) -> None:
    (folder.parent / "slow").touch()
    killed = start_builder(folder, builders)
    wait_for(folder.parent / "compiled")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(build_dir().glob(".*tmp-*"))
    (folder.parent / "slow").unlink()
    built = build("emulated", folder=folder)
    assert built.seconds is not None and built.path.is_file()
    assert not list(build_dir().glob(".*tmp-*"))


def test_a_file_has_its_own_flags_on_its_own_machine(folder: Path) -> None:
    text = "// What it is.\n// flags: -DA=1\n// flags(x86_64): -mavx2 -DB\n// flags(arm): -DC\n"
    assert file_flags(text, "x86_64") == ["-DA=1", "-mavx2", "-DB"]
    assert file_flags(text, "arm") == ["-DA=1", "-DC"]
    (folder / "number_emulated.cpp").write_text(f"// flags: -DNUMBER=5\n{SOURCE}")
    (folder / "number.h").write_text("")
    assert build("emulated", folder=folder).seconds is not None


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (folder / "number_emulated.cpp").rename(folder / "number_cpu.cpp")
    monkeypatch.setattr(build_module, "csrc_dir", lambda: folder)
    monkeypatch.setattr(build_module, "local_arch", lambda: None)
    assert main(["build"]) == 0
    first = capsys.readouterr().out
    assert first.startswith(f"cpu   {os.uname().machine}") and " s: " in first
    assert main(["build", "--kind", "cpu"]) == 0
    second = capsys.readouterr().out
    assert "already built" in second and second.split()[-1] == first.split()[-1]
    assert main(["build", "--kind", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("error: cuda kernels: no GPU here")
    assert main(["build", "--kind", "cpu", "--arch", "sm_90"]) == 2
    assert "--arch is for cuda only" in capsys.readouterr().err


def test_an_installed_package_has_every_source() -> None:
    data = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = data["package-data"]["ds_train"]
    for path in csrc_dir().iterdir():
        if path.suffix != ".md":
            assert f"csrc/*{path.suffix}" in patterns, path.name
