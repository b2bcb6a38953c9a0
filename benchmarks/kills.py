"""Ten kinds of kill, each a real run of the real launcher: what was lost, and what the run said.

A tiny LoRA run of twelve steps on two processes that saves every three, disturbed in one way after
another, and one without disturbance, whose losses the others are compared with. Prints a Markdown
table; with --output writes it there. A host that goes down needs root (network namespaces), a full
disk too (a tmpfs); rows that can't be made here are left out, and the table says so.

usage: python benchmarks/kills.py [--output RESULT.md] [KIND ...]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import yaml

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "tests"))

from distributed import scenarios  # noqa: E402 (the tests' tiny model, rows and recipe)
from testbed import Testbed  # noqa: E402 (hosts on this machine)

from ds_train.checkpoint.folder import complete_checkpoints  # noqa: E402
from ds_train.paths import RunPaths  # noqa: E402
from ds_train.report.record import StepRecord, read_records  # noqa: E402

STEPS, EVERY, KILL_AT = 12, 3, 5
_SECONDS = 600.0
NAN = """\
import sys, threading, time
def patch():
    while not hasattr(sys.modules.get("ds_train.train.loop"), "Loop"):
        time.sleep(0.01)
    from dataclasses import replace
    loop, made = sys.modules["ds_train.train.loop"], [0]
    own = loop.train_step
    def train_step(*args, **kwargs):
        result, made[0] = own(*args, **kwargs), made[0] + 1
        return replace(result, loss=float("nan")) if made[0] == 5 else result
    loop.train_step = train_step
if any(word.startswith("--local_rank=") for word in sys.orig_argv):
    threading.Thread(target=patch, daemon=True).start()
"""
"""sitecustomize.py of a run whose fifth loss is NaN."""


@dataclass
class Row:
    """One kind of kill, as it went."""

    kind: str
    done: str
    said: str
    code: int
    root: Path | None
    went_on_from: int | None = None
    reached: int | None = None
    note: str = ""


@dataclass
class Command:
    """`ds-train ...` in a session of its own, and what it has printed so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def until(self, begins: str) -> None:
        """Read until a line begins so. Raises RuntimeError at the end of the output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith(begins):
                return
        raise RuntimeError(f"no line begins with {begins!r}:\n" + "\n".join(self.lines[-30:]))

    def finish(self) -> int:
        """The exit code."""
        output, _ = self.process.communicate(timeout=_SECONDS)
        self.lines += output.splitlines()
        return self.process.returncode

    def ranks(self) -> dict[int, psutil.Process]:
        """Rank -> its process, below this command."""
        found = {}
        for one in psutil.Process(self.process.pid).children(recursive=True):
            words = one.cmdline()
            is_rank = any(word.startswith("--local_rank=") for word in words)
            if is_rank and "deepspeed.launcher.launch" not in words:
                found[int(one.environ()["RANK"])] = one
        return found

    def said(self, *begins: str, last: bool = False) -> str:
        """The first line that begins so, or the last one, without that."""
        for line in reversed(self.lines) if last else self.lines:
            for begin in begins:
                if line.startswith(begin):
                    return line.removeprefix(begin)
        return ""


class Kills:
    """The folder of all runs, and the run that was left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        scenarios.write_inputs(folder)
        self.whole = self.run("undisturbed")
        code = self.whole.finish()
        if code != 0:
            raise SystemExit("\n".join(self.whole.lines))

    def root(self, name: str) -> Path:
        return self.folder / "runs" / name

    def recipe(self, name: str, **cluster: Any) -> Path:
        content = scenarios.recipe(self.folder, name, scenarios.TWELVE_STEPS)
        content["checkpoint"] = {"every": f"{EVERY} steps", "keep": 2}
        content["cluster"] = {"hang_seconds": 20, "restarts": 1, "processes_per_node": 2, **cluster}
        content["report"] = {"progress": "plain", "log_every": 1}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def run(
        self,
        name: str,
        *overrides: str,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        **cluster: Any,
    ) -> Command:
        recipe = self.recipe(name, **cluster)
        return ds_train("train", str(recipe), *overrides, environment=environment, prefix=prefix)

    def losses(self, root: Path) -> dict[int, float]:
        records = read_records(RunPaths(root).metrics)
        return {one.step: one.loss for one in records if isinstance(one, StepRecord)}

    def difference(self, root: Path) -> float | None:
        """Largest relative difference to the undisturbed losses; None where steps are missing."""
        whole, found = self.losses(self.root("undisturbed")), self.losses(root)
        if set(whole) != set(found):
            return None
        return max(abs(found[step] / whole[step] - 1) for step in whole)


def ds_train(
    *arguments: str, environment: dict[str, str] | None = None, prefix: Sequence[str] = ()
) -> Command:
    usual = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "ds_train", *arguments],
        env={**os.environ, **usual, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=REPO,
    )
    return Command(process)


def by_itself(kills: Kills, command: Command, row: Row) -> Row:
    """The run goes on in the same command."""
    row.code = command.finish()
    row.said = command.said("failed: ")
    row.went_on_from, row.reached = where(command)
    return row


def again(kills: Kills, first: Command, row: Row, second: Command) -> Row:
    """The same command is given a second time."""
    row.reached = max(steps_of(first), default=0)
    code = second.finish()
    row.note = f"the same command: exit code {code}" + (f"; {row.note}" if row.note else "")
    row.went_on_from = where(second)[0]
    return row


def where(command: Command) -> tuple[int | None, int | None]:
    """After which step the run went on, and how far it had come before."""
    told = command.said("resume: goes on after step ")
    restart = command.said("restart: from step ")
    reached = restart.partition("(reached: ")[2].partition(")")[0] if restart else ""
    went_on = int(told.split()[0]) if told else 0 if restart else None
    return went_on, int(reached) if reached else None


def steps_of(command: Command) -> list[int]:
    """Steps whose lines were printed."""
    return [
        int(x.split("/")[0].split()[1]) for x in command.lines if x.startswith("step ") and "/" in x
    ]


def rank_killed(kills: Kills) -> Row:
    command = kills.run("rank")
    command.until(f"step {KILL_AT}/")
    command.ranks()[1].kill()
    done = f"SIGKILL to rank 1 after step {KILL_AT}"
    return by_itself(kills, command, Row("a rank", done, "", 0, kills.root("rank")))


def launcher_killed(kills: Kills) -> Row:
    command = kills.run("launcher")
    command.until(f"step {KILL_AT}/")
    (launcher,) = {one.parent() for one in command.ranks().values()}
    assert launcher is not None
    launcher.kill()
    done = f"SIGKILL to DeepSpeed's launcher after step {KILL_AT}"
    return by_itself(kills, command, Row("the launcher", done, "", 0, kills.root("launcher")))


def sigterm(kills: Kills) -> Row:
    command = kills.run("sigterm")
    command.until(f"step {KILL_AT}/")
    command.process.terminate()
    code = command.finish()
    shutil.copytree(kills.root("sigterm"), kills.root("damaged"))
    said = command.said("asked to stop: ")
    done = f"SIGTERM to `ds-train train` after step {KILL_AT}"
    row = Row("SIGTERM", done, f"asked to stop: {said}", code, kills.root("sigterm"))
    return again(kills, command, row, kills.run("sigterm"))


def during_save(kills: Kills) -> Row:
    """The second checkpoint, when the first of its files is there."""
    command = kills.run("save")
    command.until(f"step {2 * EVERY - 1}/")
    partial = RunPaths(kills.root("save")).checkpoints / f".partial-step-{2 * EVERY:08d}"
    ranks = [rank.pid for rank in command.ranks().values()]
    deadline = time.monotonic() + 60
    while not list(partial.glob("state/*")) and time.monotonic() < deadline:
        pass
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    names = [str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()]
    done = "SIGKILL to both ranks while a checkpoint is written"
    row = Row("during save", done, "", 0, kills.root("save"))
    row.note = f"{partial.name} had {', '.join(sorted(names)) or 'no file'} then"
    return by_itself(kills, command, row)


def during_export(kills: Kills) -> Row:
    run, target = kills.root("undisturbed"), kills.folder / "exported"
    command = ds_train("export", str(run), "--merge", "--output", str(target))
    names: list[str] = []
    while not names and command.process.poll() is None:
        names = [path.name for path in kills.folder.glob(".exported.partial-*/*")]
    command.process.kill()
    code = command.finish()
    state = "absent" if not target.exists() else "there"
    codes = []
    for place in (target, target.with_name("exported-alone")):
        codes.append(ds_train("export", str(run), "--merge", "--output", str(place)).finish())
    whole = [
        {file.name: file.read_bytes() for file in place.iterdir()}
        for place in (target, target.with_name("exported-alone"))
    ]
    row = Row("during export", "SIGKILL to `ds-train export` while it writes", "", code, None)
    row.note = (
        f"{', '.join(names)} had been begun; the output was {state}; the same command: exit code "
        f"{codes[0]}, and its {len(whole[0])} files are "
        f"{'those' if whole[0] == whole[1] else 'NOT those'} of an export that was left alone"
    )
    return row


def disk_full(kills: Kills) -> Row:
    root = kills.root("disk")
    root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)], check=True)
    try:
        command = kills.run("disk")
        command.until(f"step {KILL_AT - 1}/")
        ballast = root / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(b"0" * 65536)
        except OSError:
            pass
        code = command.finish()
        said = command.said("error: ", "error (rank 1): ")
        row = Row(
            "disk full",
            "a tmpfs filled up before a checkpoint was due",
            said,
            code,
            kills.root("disk-copy"),
        )
        ballast.unlink()
        row = again(kills, command, row, kills.run("disk"))
        shutil.copytree(root, kills.root("disk-copy"))
        return row
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


def host_down(kills: Kills) -> Row:
    hosts = Testbed(kills.folder)
    made = hosts._script("up", "2")
    if made.returncode != 0:
        raise RuntimeError(made.stderr.strip())
    try:
        name = hosts._environment["TESTBED"]
        prefix = [str(REPO / "launch" / "testbed.sh"), "exec", "node-0"]
        command = kills.run(
            "host",
            environment=hosts._environment,
            prefix=prefix,
            hostfile=str(hosts.hostfile),
            processes_per_node=1,
        )
        command.until(f"node-0: step {KILL_AT}/")
        subprocess.run(["ip", "-n", f"{name}-1", "link", "set", "eth0", "down"], check=True)
        done = f"the network of one of two hosts down after step {KILL_AT}"
        row = Row("a host", done, "", command.finish(), kills.root("host"))
        command.lines = [line.removeprefix("node-0: ") for line in command.lines]
        row.said = command.said("failed: ")
        row.went_on_from, row.reached = where(command)
        row.note = "went on on one host: " + command.said("step: ", last=True)
        return row
    finally:
        hosts.down()


def hang(kills: Kills) -> Row:
    command = kills.run("hang")
    command.until(f"step {KILL_AT}/")
    command.ranks()[1].send_signal(signal.SIGSTOP)
    done = f"SIGSTOP to rank 1 after step {KILL_AT} (cluster.hang_seconds: 20)"
    return by_itself(kills, command, Row("hang", done, "", 0, kills.root("hang")))


def nan(kills: Kills) -> Row:
    patch = kills.folder / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(NAN)
    command = kills.run("nan", environment={"PYTHONPATH": f"{patch}:{REPO}"})
    code = command.finish()
    said = command.said("error: ")
    done = "the loss of step 5 is NaN on all ranks"
    row = Row("NaN", done, said, code, kills.root("nan"))
    return again(kills, command, row, kills.run("nan"))


def damaged(kills: Kills) -> Row:
    """The folder that SIGTERM left, with its newest checkpoint damaged."""
    root = kills.root("damaged")
    newest = complete_checkpoints(RunPaths(root))[-1]
    file = next((newest / "state").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 0x40
    file.write_bytes(bytes(content))
    second = kills.run("damaged")
    code = second.finish()
    done = f"one bit of {newest.name}/state changed after the run was stopped"
    row = Row("newest checkpoint damaged", done, second.said("checkpoint step-"), code, root)
    row.said = f"checkpoint step-{row.said}"
    row.went_on_from, row.reached = where(second)[0], int(newest.name.removeprefix("step-"))
    return row


KINDS: dict[str, Callable[[Kills], Row]] = {
    "rank": rank_killed,
    "launcher": launcher_killed,
    "sigterm": sigterm,
    "save": during_save,
    "export": during_export,
    "disk": disk_full,
    "host": host_down,
    "hang": hang,
    "nan": nan,
    "damaged": damaged,
}


def show(kills: Kills, rows: Sequence[Row], left_out: Sequence[str], seconds: float) -> str:
    """The Markdown page."""
    lines = [
        "# Ten kinds of kill",
        "",
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} CPU cores, in {seconds:.0f} s "
        f"(`python benchmarks/kills.py`). LoRA of a tiny Llama, fp32, ZeRO-2, two processes over "
        f"gloo, {STEPS} steps, a checkpoint every {EVERY}, `cluster.restarts: 1`. Compared with an "
        "undisturbed run: the largest relative difference of any of the losses.",
        "",
        "| kind | what was done | exit code | came to step | went on after step | steps made again "
        "| difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lost = (
            ""
            if row.reached is None or row.went_on_from is None
            else row.reached - row.went_on_from
        )
        difference = None if row.root is None else kills.difference(row.root)
        shown = "steps are missing" if difference is None else f"{difference:.1e}"
        shown = "-" if row.root is None else shown
        numbers = ["-" if x is None else str(x) for x in (row.reached, row.went_on_from)]
        lines.append(
            f"| {row.kind} | {row.done} | {row.code} | {' | '.join(numbers)} | {lost} | {shown} |"
        )
    lines += ["", "## What the runs said", ""]
    for row in rows:
        note = f" ({row.note})" if row.note else ""
        said = row.said.replace(str(kills.folder), "FOLDER") or "nothing: it was killed"
        lines.append(f"- **{row.kind}**: {said}{note}")
    if left_out:
        lines += ["", "Left out here: " + "; ".join(left_out) + "."]
    return (
        "\n".join(lines).replace(str(kills.folder), "FOLDER").replace(platform.node(), "HOST")
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    chosen = args.kinds or list(KINDS)
    if "damaged" in chosen and "sigterm" not in chosen:
        parser.error("damaged goes on from the folder that sigterm leaves; name both")
    began, rows, left_out = time.monotonic(), [], []
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        kills = Kills(Path(name))
        for kind in chosen:
            try:
                rows.append(KINDS[kind](kills))
                print(f"{time.monotonic() - began:.0f} s  {rows[-1]}", file=sys.stderr, flush=True)
            except (RuntimeError, subprocess.SubprocessError, AssertionError) as error:
                left_out.append(f"{kind} ({error})")
                print(f"{kind}: {error}", file=sys.stderr, flush=True)
            text = show(kills, rows, left_out, time.monotonic() - began)
            if args.output is not None:
                args.output.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
