"""Measured beside the runs: the model before training, and the text that it was pretrained on.

Each measurement is a `ds-train evaluate` of its own, and its file is kept; its name depends on what
is measured, so that another text is never taken for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ds_train.compare.arms import Comparison, RunSpec
from ds_train.config.data import SourceConfig, ValidationConfig
from ds_train.config.load import dump_recipe
from ds_train.data.fingerprint import hash_of
from ds_train.errors import RunFailed
from ds_train.paths import replace_text
from ds_train.transfer.design import METRIC, Design

Say = Callable[[str], object]


class Measuring:
    """Evaluations of the models of one comparison; each is made once."""

    def __init__(self, comparison: Comparison, design: Design, say: Say) -> None:
        self._folder, self._design, self._say = comparison.folder, design, say

    def zero_shot(self, spec: RunSpec) -> float:
        """Bits per byte of the pretrained model on the test text."""
        data = self._design.base.data
        held_out = hash_of([one.model_dump(mode="json") for one in (data.validation, *data.train)])
        output = self._folder / f"zero_shot-{held_out[:8]}.json"
        return self._measure([str(spec.paths.root), "--base"], output, "before training")

    def source_before(self, spec: RunSpec) -> float:
        """Bits per byte of the pretrained model on the source text."""
        output = self._folder / f"source-{_name(self._design.transfer.source)}.json"
        arguments = [str(spec.paths.root), "--base", "--recipe", str(self._source_recipe())]
        return self._measure(arguments, output, "source text before training")

    def source_after(self, spec: RunSpec) -> float:
        """Bits per byte of a trained model on the source text."""
        output = spec.paths.root / f"source-{_name(self._design.transfer.source)}.json"
        arguments = [str(spec.paths.root), "--recipe", str(self._source_recipe())]
        return self._measure(arguments, output, f"source text after {spec.name}")

    def _source_recipe(self) -> Path:
        """A recipe whose held-out data is the source text; nothing is trained with it."""
        base, sources = self._design.base, self._design.transfer.source
        data = base.data.model_copy(
            update={
                "train": sources,
                "validation": ValidationConfig(sources=sources),
                "dev": None,
                "limit": None,
                "mixture": None,
            }
        )
        path = self._folder / f"source-{_name(sources)}.yaml"
        config = base.model_copy(update={"data": data, "transfer": None, "compare": None})
        replace_text(path, dump_recipe(config))
        return path

    def _measure(self, arguments: Sequence[str], output: Path, what: str) -> float:
        if not output.is_file():
            self._say(f"transfer: {what} is measured")
            command = [sys.executable, "-m", "ds_train", "evaluate", *arguments]
            command += ["--output", str(output)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise RunFailed(f"{what} could not be measured: {said}")
        return float(json.loads(output.read_text())[METRIC])


def _name(sources: Sequence[SourceConfig]) -> str:
    return hash_of([source.model_dump(mode="json") for source in sources])[:8]
