"""Why a run ended: from the launcher's exit code and what the ranks have noted, one cause.

The first rank to go takes the others with it, which then speak of lost connections; so an error
of another kind is the cause where there is one, then a rank that is gone without a word.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ds_train.launch.connection import is_connection
from ds_train.launch.hang import describe_hang
from ds_train.launch.notes import RankNote, place_of

Kind = Literal[
    "killed", "launcher", "hang", "connection", "device", "memory", "disk", "diverged", "error"
]
_RESTARTABLE = ("killed", "launcher", "hang", "connection", "device")
_DEVICE = ("cuda error", "cublas", "cudnn", "hip error", "ecc error", "unspecified launch failure")


@dataclass(frozen=True)
class Failure:
    """The cause, and what can be done about it."""

    kind: Kind
    text: str
    """What happened, where; one sentence without its full stop."""
    remedy: str = ""
    """A sentence; empty where the text above it has said it."""

    @property
    def can_restart(self) -> bool:
        """Whether the same run may well get past it, from its last checkpoint."""
        return self.kind in _RESTARTABLE

    def __str__(self) -> str:
        return f"{self.text}." + (f" {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Ended:
    """What is known when the launcher is gone."""

    code: int
    """Its exit code; negative: the signal that killed the launcher itself."""
    notes: Mapping[int, RankNote]
    """Rank -> its note; a rank that has ended well has none."""
    hosts: Mapping[int, str]
    """Rank -> host it was started on; empty where there are no notes."""
    stacks: Sequence[int] = ()
    """Ranks that have written their stacks."""
    stacks_folder: Path | None = None
    hang_seconds: float | None = None
    num_oom_kills: int | None = None
    """Processes that the kernel ended for want of memory meanwhile, on this machine; None where it
    does not say, or the ranks are elsewhere."""


def find_failure(ended: Ended) -> Failure:
    """The cause; the run has failed."""
    notes = ended.notes
    if ended.stacks:
        return describe_hang_failure(ended)
    over = [n for n in notes.values() if n.state == "ended" and n.code != 0]
    lost = [n for n in over if is_connection(n.error, n.text)]
    own = sorted((n for n in over if n not in lost), key=lambda n: n.time)
    if own:
        return _error(own[0], place_of(own[0].rank, notes, ended.hosts))
    if ended.code < 0:
        return _launcher(f"the deepspeed launcher was killed by {signal_name(-ended.code)}")
    signum = 256 - ended.code if ended.code > 192 else 0
    silent = silent_ranks(notes, ended.hosts)
    if signum or (over and silent):
        return _killed(signum, silent, ended)
    if over:
        first = min(over, key=lambda n: n.time)
        place = place_of(first.rank, notes, ended.hosts)
        return Failure("connection", f"{place} lost the others in {first.phase} ({_said(first)})")
    if ended.code == 0:
        return _launcher("the deepspeed launcher was killed before its ranks came to their end")
    text = f"a training process ended with exit code {ended.code}; its error stands above"
    return Failure("error", text)


def describe_hang_failure(ended: Ended) -> Failure:
    """Who had not come as far as the others."""
    text = describe_hang(ended.notes, ended.hosts, ended.stacks, ended.hang_seconds)
    remedy = (
        f"Stacks of all threads: {ended.stacks_folder}. Look there for what the ranks wait for; "
        "`ds-train doctor` tries the network; a longer wait is cluster.hang_seconds."
    )
    return Failure("hang", text, remedy)


def silent_ranks(notes: Mapping[int, RankNote], hosts: Mapping[int, str]) -> list[int]:
    """Ranks that were at work and then were gone, without having been asked to stop."""
    running = [r for r, n in notes.items() if n.state == "running" and not n.was_asked]
    return running or [rank for rank in hosts if rank not in notes]


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


def _killed(signum: int, silent: Sequence[int], ended: Ended) -> Failure:
    who = " or ".join(place_of(rank, ended.notes, ended.hosts) for rank in silent[:4])
    # those who lost it noted it then; its own note is some seconds old
    told = [n for n in ended.notes.values() if n.state == "ended"]
    seen = [ended.notes[rank] for rank in silent if rank in ended.notes]
    when = f" in {max(told, key=lambda n: n.position).phase}" if told else ""
    last = f"; last seen in {seen[0].phase}" if seen and not told else ""
    if not signum:
        return Failure(
            "killed", f"{who} was gone{when} without a word: killed, or its host is lost"
        )
    text = f"{who or 'a training process'} was killed by {signal_name(signum)}{when}"
    if signum == signal.SIGBUS:
        remedy = "The usual cause is a full /dev/shm; give it more room."
    elif signum != signal.SIGKILL:
        remedy = "What stands above says more."
    else:
        why, remedy = _why_killed(ended.num_oom_kills)
        text += f" ({why})"
    return Failure("killed", text + last, remedy)


def _why_killed(num_oom_kills: int | None) -> tuple[str, str]:
    """What SIGKILL came from, and the remedy."""
    memory = "Too little memory: lower train.per_device_train_batch_size, or see `ds-train plan`."
    if num_oom_kills:
        how = f"the kernel's out-of-memory killer ended {num_oom_kills} here meanwhile"
        return how, memory
    if num_oom_kills == 0:
        return "not by this machine's out-of-memory killer: somebody sent it", ""
    return "the usual cause is too little memory", memory


def _launcher(text: str) -> Failure:
    return Failure("launcher", text)


def _error(note: RankNote, place: str) -> Failure:
    """A rank ended by an error of its own."""
    said, text = _said(note), note.text.lower()
    above = f"{place} ended in {note.phase}: {said}"
    if note.error in ("TrainingDiverged", "RolledBack"):
        return Failure("diverged", f"the training diverged in {note.phase} ({place}; see above)")
    if "outofmemory" in note.error.lower() or "out of memory" in text:
        remedy = "Lower train.per_device_train_batch_size, or see `ds-train plan --measure`."
        return Failure("memory", f"{place} ran out of memory in {note.phase}", remedy)
    if note.errno == errno.ENOSPC or "no space left" in text:
        return Failure("disk", above, "Make room; the same command goes on.")
    if "device-side assert" not in text and any(words in text for words in _DEVICE):
        return Failure("device", above, "The error stands above.")
    return Failure("error", above, "Its error stands above.")


def _said(note: RankNote) -> str:
    return f"{note.error}: {note.text}" if note.text else note.error
