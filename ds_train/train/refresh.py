"""Self-paced learning: the model in training measures the samples' difficulty again.

At each boundary of `curriculum.refresh_at` no step is under way and nothing is built ahead. All
ranks then score the training samples, each sample alone in its row, without dropout, gradients or
any use of a random generator; so the steps after it are those of a run that had known the
difficulties from its start. The batches are the same for any number of ranks. Under ZeRO-3 every
forward is a collective one, so ranks that have run out of batches go through the first once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ds_train.curriculum.refresh import fingerprints_of, named_scores, segments_of, store_refresh
from ds_train.curriculum.scores import ScoreBook
from ds_train.data.batch import collate, length_batches
from ds_train.data.mix import Ints
from ds_train.data.store import TokenStore
from ds_train.errors import CheckpointError, quoted
from ds_train.train.run import Run
from ds_train.units import format_seconds

Say = Callable[[str], object]


class Refresher:
    """Divides the steps of a run into stretches, and scores the samples between them."""

    def __init__(self, run: Run, say: Say) -> None:
        self._run, self._say = run, say
        self._segments = segments_of(run.plan)

    @property
    def fingerprints(self) -> list[str]:
        """Of the difficulties that this run has measured on its way, for its checkpoints."""
        return [] if self._segments is None else fingerprints_of(self._segments)[1:]

    def stretches(self, first: int) -> Iterator[range]:
        """All steps from `first` on; the samples are scored when a stretch is asked for."""
        while first < self._run.total_steps:
            border = None if self._segments is None else self._segments.next_step
            if border is not None and border <= first:
                self._score(border)
                continue
            stop = self._run.total_steps if border is None else border
            yield range(first, stop)
            first = stop

    def _score(self, step: int) -> None:
        """Measure, store and use the difficulties of the segment that begins; collective."""
        run, began = self._run, time.monotonic()
        assert self._segments is not None
        book = ScoreBook(run.config, run.data)
        values = sample_losses(run)
        book.check_finite(book.specs[0], values)  # on all ranks alike
        scores = named_scores(values.astype(np.float32), book.metric)
        seconds, fault = time.monotonic() - began, ""
        if run.ranks.is_main:
            try:
                store_refresh(run.paths, self._segments, scores, seconds)
            except OSError as error:
                fault = error.strerror or str(error)
        if fault := run.ranks.first_text(fault):
            raise CheckpointError(
                f"the samples' difficulty could not be written to {quoted(run.paths.difficulty)}: "
                f"{fault}. Make room; the same command then goes on from the last checkpoint."
            )
        self._segments.add(scores)
        self._say(
            f"difficulty: {book.metric} of {len(values):,} samples measured again after step "
            f"{step:,} in {format_seconds(seconds)} (fingerprint {scores.fingerprint[:12]})"
        )


@torch.no_grad()
def sample_losses(run: Run) -> NDArray[np.float64]:
    """float64 [N]: mean loss of each training sample's supervised tokens under the model as it is.

    Of a labelled example with several renderings: of its right answer in its first template.
    Equal on all ranks; a collective call.
    """
    store, ranks, train = run.data.train.of_examples(), run.ranks, run.config.train
    rows = train.per_device_eval_batch_size or max(train.per_device_train_batch_size, 8)
    batches = list(length_batches(store.lengths, rows * run.config.data.max_length))
    values = np.zeros(store.num_samples)
    run.engine.train_mode(False)
    for start in range(0, len(batches), ranks.world_size):
        mine = start + ranks.rank
        losses = _mean_losses(run, store, batches[mine if mine < len(batches) else 0])
        if mine < len(batches):
            values[batches[mine]] = losses
    run.engine.train_mode(True)
    return ranks.sum(torch.from_numpy(values)).numpy()


def _mean_losses(run: Run, store: TokenStore, samples: Ints) -> NDArray[np.float64]:
    """float64 [samples]: mean losses of samples, each alone in a row."""
    rows = [np.array([sample]) for sample in samples.tolist()]
    batch = collate(store, rows, **run.layout)
    losses, _ = run.engine.token_losses(batch.to(run.ranks.device))
    if run.flatten:  # the rows lie one after another in a single one
        parts = losses[0].double().split(store.lengths[samples].tolist())
        sums = torch.stack([part.sum() for part in parts])
    else:
        sums = losses.double().sum(dim=1)
    means: NDArray[np.float64] = sums.cpu().numpy() / store.supervised[samples]
    return means
