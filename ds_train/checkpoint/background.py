"""Saving while the run goes on: the steps wait neither for the disk nor, as a rule, for the copy.

What a rank holds changes at the next update only. So a thread copies its share to the host's memory
during the forward and backward passes that follow, and the update waits should the copy not be
complete; then the thread writes. It uses no collective (those of the training go on meanwhile): a
small file says that a share is on disk, and rank 0's thread publishes the checkpoint when it has
seen one of every rank. Who could not write is known at `join`. So a kill at any moment leaves the
checkpoint before as it was, as with saving in the foreground, and until then nothing older is
removed.

Reading the state beside the passes that follow, which leave it alone, is the method of Maurya et
al., "DataStates-LLM: Lazy Asynchronous Checkpointing for Large Language Models" (HPDC 2024).
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from ds_train.checkpoint.checksums import digest
from ds_train.checkpoint.folder import CheckpointFacts
from ds_train.checkpoint.pieces import Share
from ds_train.checkpoint.state import (
    WriteExtra,
    collect,
    finish_checkpoint,
    gather_trained,
    partial_folder,
    remove_partial,
    share_of,
    state_path,
    write_failure,
    write_share,
)
from ds_train.engine.engine import Engine
from ds_train.engine.ranks import Ranks
from ds_train.engine.snapshot import Snapshot
from ds_train.errors import CheckpointError
from ds_train.paths import RunPaths, replace_text

_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 1800.0
"""How long rank 0 waits for the others' shares; a rank that is gone ends the run earlier."""


class BackgroundSave:
    """A checkpoint that is being written. Making one is a collective call, and so is `join`."""

    def __init__(
        self,
        paths: RunPaths,
        engine: Engine,
        facts: CheckpointFacts,
        write_extra: WriteExtra | None,
    ) -> None:
        began = time.perf_counter()
        self.folder = paths.checkpoint(facts.step)
        self._ranks: Ranks = engine.ranks
        self._facts, self._write_extra = facts, write_extra
        self._partial = partial_folder(self.folder)
        if self._ranks.is_main:
            remove_partial(paths)  # of an earlier attempt: its shares are not ours
        self._share = collect(engine)
        # small ones; on a CPU at stage 0 they are the very tensors that the next step changes
        trained = gather_trained(engine, write_extra)
        self._trained = {name: tensor.clone() for name, tensor in trained.items()}
        self._failure = ""
        self._copied, self._share_done = threading.Event(), threading.Event()
        self._given_up = threading.Event()
        self._snapshot = Snapshot(self._ranks.device)
        self._ranks.barrier()  # nobody writes before what was left over is gone
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()
        engine.read_behind(self._wait_for_copy)
        self.waited_seconds = time.perf_counter() - began
        """Of the run, so far, for this checkpoint."""

    def _wait_for_copy(self) -> None:
        began = time.perf_counter()
        self._copied.wait()
        self.waited_seconds += time.perf_counter() - began

    def join(self) -> Path:
        """Wait until it is on disk; returns its folder.

        Raises:
            CheckpointError: on every rank, if one could not write; older checkpoints are untouched.
        """
        began = time.perf_counter()
        self._share_done.wait()
        if reason := self._ranks.first_text(self._failure):
            self._given_up.set()  # rank 0 must not wait for a share that will not come
        self._thread.join()
        if reason := reason or self._ranks.first_text(self._failure):
            raise CheckpointError(write_failure(self.folder, reason))
        self.waited_seconds += time.perf_counter() - began
        return self.folder

    def let_finish(self, seconds: float) -> None:
        """Without a collective, for a run that has failed: what can still be written is."""
        self._thread.join(seconds)
        self._given_up.set()

    def _work(self) -> None:
        try:
            with self._snapshot.reading():
                self._share.copy_to_host()
            self._copied.set()
            self._write()
        except Exception as error:  # noqa: BLE001 (a thread's fault is nobody's unless it is told)
            self._failure = f"rank {self._ranks.rank}: {error}"
        finally:
            self._share, self._trained = Share(), {}
            self._copied.set()
            self._share_done.set()

    def _write(self) -> None:
        rank = self._ranks.rank
        write_share(self._partial, self._share, self._trained, self._ranks, self._write_extra)
        written = {share_of(rank): digest(state_path(self._partial, rank))}
        replace_text(self._note(rank), json.dumps(written))
        self._share_done.set()
        if self._ranks.is_main:
            self._publish()

    def _note(self, rank: int) -> Path:
        return self._partial / "state" / f"rank-{rank:05d}.json"

    def _publish(self) -> None:
        digests: dict[str, str] = {}
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for rank in range(self._ranks.world_size):
            note = self._note(rank)
            while not note.is_file():
                if self._given_up.is_set() or time.monotonic() > deadline:
                    raise CheckpointError(f"rank {rank} has not written its share")
                time.sleep(_POLL_SECONDS)
            digests |= json.loads(note.read_text())
        for rank in range(self._ranks.world_size):
            self._note(rank).unlink()
        finish_checkpoint(self._partial, self.folder, self._facts, digests)
