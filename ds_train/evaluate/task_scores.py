"""Normalisation and calibration for the multiple-choice tasks of lm_eval, by name.

`TaskScores` adds to a loaded task the requests that a calibration needs, and to its results an
accuracy for each normalisation (`acc_tokens`) and each calibration of it (`acc_tokens_contextual`),
always with the uncalibrated number beside; without a normalisation they are `acc` and
`acc_contextual`. The task's own metrics stay as they are. Formulas: ds_train/fewshot/calibration.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ds_train.errors import DataError, InputError, shorten
from ds_train.evaluate.content_free import content_free_documents
from ds_train.evaluate.task_shots import Document, TaskShots
from ds_train.fewshot import calibration
from ds_train.fewshot.accuracies import (
    Candidates,
    accuracy_name,
    accuracy_of,
    accuracy_pairs,
)
from ds_train.fewshot.draws import document_key


class PairEncoder(Protocol):
    """What is asked of a model's adapter: the tokens of a context and of what follows it."""

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]: ...

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Tokens of a text."""
        ...


@dataclass(frozen=True)
class _Layout:
    """Where a document's answers stand among its requests."""

    num_own: int
    """requests of the task itself, its answers first"""
    num_choices: int
    num_content_free: int
    unconditional_at: int | None
    token_lengths: tuple[float, ...]


class TaskScores:
    """Scores of one loaded lm_eval task (`ConfigurableTask`) by other rules, from now on.

    Args:
        shots: of the same task; contexts without content get the demonstrations it shows.
        normalisations, calibrations: names of ds_train/config/shots.py.

    Raises:
        InputError: not a multiple-choice task, or one that a calibration can't be made for.
    """

    def __init__(
        self,
        task: Any,
        shots: TaskShots,
        encoder: PairEncoder,
        normalisations: Collection[str] = ("none",),
        calibrations: Collection[str] = ("none",),
    ) -> None:
        self.task, self.shots, self.encoder = task, shots, encoder
        self.name = f"task {task.config.task}"
        self.pairs = accuracy_pairs(normalisations, calibrations)
        """(normalisation, calibration) of each accuracy that is added"""
        self.calibrations = {calibrated for _, calibrated in self.pairs} - {"none"}
        self.normalisations = {normalisation for normalisation, _ in self.pairs}
        self._check()
        self._layouts: dict[str, _Layout] = {}
        self._choices: list[str] | None = None
        self._construct = task.construct_requests
        self._process = task.process_results
        task.construct_requests = self.construct_requests
        task.process_results = self.process_results
        self._announce()

    def _check(self) -> None:
        if self.task.OUTPUT_TYPE != "multiple_choice":
            raise InputError(
                f"{self.name}: is a {self.task.OUTPUT_TYPE} task; normalise and calibration are "
                "for multiple_choice tasks. Leave it out of this evaluation."
            )
        if self.task.multiple_input and self.calibrations:
            raise InputError(
                f"{self.name}: calibration = {min(self.calibrations)}: its candidates are "
                "contexts before one and the same answer, so that there is no bias between "
                "answers to take away; take none."
            )

    def _announce(self) -> None:
        """The new metrics become metrics of the task, so that lm_eval averages and compares."""
        from lm_eval.api.metrics import mean

        for pair in self.pairs:
            by_batch = pair[1] == "batch"
            self.task.aggregation()[accuracy_name(*pair)] = (
                calibration.batch_accuracy if by_batch else mean
            )
            self.task.higher_is_better()[accuracy_name(*pair)] = True

    def construct_requests(self, doc: Document, ctx: Any, **kwargs: Any) -> list[Any]:
        """Stands in for the task's `construct_requests`: its own, then what calibration needs."""
        own = list(self._construct(doc, ctx, **kwargs))
        choices = self.task.doc_to_choice(doc)
        self._check_alike(choices)
        requests = list(own)
        num_content_free = 0
        if "contextual" in self.calibrations:
            for empty in content_free_documents(self.task, doc):
                context = self.shots.again(empty)
                requests += list(self._construct(empty, context, **kwargs))[: len(choices)]
                num_content_free += 1
        unconditional_at = None
        if "pmi" in self.calibrations:
            unconditional_at = len(requests)
            requests += [
                dataclasses.replace(one, arguments=("", one.args[1])) for one in own[: len(choices)]
            ]
        self._layouts[document_key(doc)] = _Layout(
            num_own=len(own),
            num_choices=len(choices),
            num_content_free=num_content_free,
            unconditional_at=unconditional_at,
            token_lengths=self._token_lengths(own[: len(choices)]),
        )
        return [
            dataclasses.replace(one, doc=doc, idx=place, resps=[], filtered_resps={})
            for place, one in enumerate(requests)
        ]

    def _check_alike(self, choices: list[str]) -> None:
        """Batch calibration compares what is said to the same answers."""
        if "batch" not in self.calibrations:
            return
        self._choices = self._choices or choices
        if choices != self._choices:
            raise InputError(
                f"{self.name}: calibration = batch: its choices differ from document to document, "
                "so there is no bias towards an answer to be found; take contextual, pmi or none."
            )

    def _token_lengths(self, requests: Sequence[Any]) -> tuple[float, ...]:
        """Tokens of each answer as they are scored: cut off the encoded whole."""
        if "tokens" not in self.normalisations:
            return ()
        lengths = []
        for request in requests:
            context, answer = request.args[:2]
            if context == "":
                lengths.append(len(self.encoder.tok_encode(answer, add_special_tokens=False)))
            else:
                lengths.append(len(self.encoder._encode_pair(context, answer)[1]))
        return tuple(map(float, lengths))

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, Any]:
        """Stands in for the task's `process_results`: its metrics and ours, of one document."""
        layout = self._layouts[document_key(doc)]
        found: dict[str, Any] = dict(self._process(doc, results[: layout.num_own]))
        candidates = self._candidates(doc, layout, [float(one[0]) for one in results])
        return found | {accuracy_name(*pair): accuracy_of(candidates, *pair) for pair in self.pairs}

    def _candidates(self, doc: Document, layout: _Layout, sums: list[float]) -> Candidates:
        size, num_free = layout.num_choices, layout.num_content_free
        free = np.array(sums[layout.num_own :][: num_free * size]).reshape(num_free, size)
        alone = None
        if (at := layout.unconditional_at) is not None:
            alone = np.array(sums[at : at + size])
        choices = self.task.doc_to_choice(doc)
        return Candidates(
            log_likelihoods=np.array(sums[:size]),
            lengths={
                "tokens": np.array(layout.token_lengths),
                "chars": np.array([float(len(text)) for text in choices]),
                "bytes": np.array([float(len(text.encode())) for text in choices]),
            },
            content_free=free,
            unconditional=alone,
            gold=self._gold(doc, choices),
        )

    def _gold(self, doc: Document, choices: Sequence[str]) -> frozenset[int]:
        """Numbers of the right answers."""
        task = self.task
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        found = set()
        for one in gold if isinstance(gold, list) else [gold]:
            if isinstance(one, str):
                one = choices.index(one) if one in choices else -1
            if not 0 <= one < len(choices):
                raise DataError(
                    f"{self.name}: a document's right answer ({one!r}) is none of its "
                    f"{len(choices)} choices: {shorten(document_key(doc), 120)}"
                )
            found.add(one)
        return frozenset(found)
