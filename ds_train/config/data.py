"""The `data` section: where rows come from, how they become tokens, what is learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ds_train.config.base import ByteCount, Count, Natural, Section, UserPath
from ds_train.config.mixture import MixtureConfig

Format = Literal[
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "question_answer",
    "text",
    "classification",
    "multiple_choice",
]
LABELLED_FORMATS: tuple[Format, ...] = ("classification", "multiple_choice")
"""Those whose rows have a right answer among several."""

LossOn = Literal["assistant", "last_assistant", "completion", "all"]
OverLength = Literal["drop", "truncate", "split", "error"]


class SourceConfig(Section):
    """One source of training data: files, a saved dataset, or a dataset of the hub."""

    path: str | list[str]
    """File, glob, folder of a saved dataset, or hub name; a list of files is one source."""

    name: str | None = None
    """Name in reports; the path's last part when left out."""

    subset: str | None = None
    """Configuration of a hub dataset."""

    split: str = "train"
    """Split of a saved or hub dataset."""

    format: Format | None = None
    """Shape of a row; detected from the columns and said when left out."""

    columns: dict[str, str | list[str]] = {}
    """From the format's field to the column that holds it, e.g. `{prompt: question}`; several for
    `choices`, e.g. `{choices: [sol1, sol2]}`."""

    labels: dict[str, str] = {}
    """Classification: from the label in the data to the word that stands for it (verbalizer)."""

    template: str | list[str] | None = None
    """Prompt with `{text}` in it (multiple_choice: `{prompt}`); the answer follows it. Of several,
    each example takes one, drawn anew in each epoch."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Passes over this source in one epoch: 0.5 takes half of it, another half each epoch."""

    loss_on: LossOn | None = None
    """Overrides `data.loss_on` for this source."""

    max_samples: Count | None = None
    """Read only the first so many samples."""

    @field_validator("template")
    @classmethod
    def _different(cls, template: str | list[str] | None) -> str | list[str] | None:
        """Several templates are different ones."""
        if template == []:
            raise ValueError("is empty; give templates, or remove the line")
        if isinstance(template, list):
            for number, text in enumerate(template):
                if text in template[:number]:
                    raise ValueError(f'holds "{text}" twice; give each template once')
        return template

    @property
    def shown_name(self) -> str:
        """The name given, or the path's last part."""
        path = self.path if isinstance(self.path, str) else "".join(self.path[:1])
        return self.name or Path(path).name or path


class ValidationConfig(Section):
    """Held-out data: a fraction of the training sources, or sources of its own."""

    fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of samples held out, chosen by a hash of their content, so duplicates stay together."""

    sources: list[SourceConfig] = []
    """Sources that are only evaluated on."""

    @model_validator(mode="after")
    def _one_of_two(self) -> ValidationConfig:
        if self.fraction is not None and self.sources:
            raise ValueError("give fraction or sources, not both")
        return self


class LimitConfig(Section):
    """A part of the training data; the smaller one lies within the larger one of the same seed."""

    bytes: ByteCount | None = None
    """UTF-8 bytes of the text that is learned from: `20 kB`."""

    samples: Count | None = None
    """Documents, conversations or labelled examples."""

    seed: Natural = 0
    """Another seed takes another part."""

    sources: list[str] = []
    """Names of the sources that are limited together, the others stay whole; all when left out."""

    @model_validator(mode="after")
    def _one_measure(self) -> LimitConfig:
        if (self.bytes is None) == (self.samples is None):
            raise ValueError("give either bytes or samples")
        return self


class DataConfig(Section):
    """Everything between the files and the token rows."""

    train: Annotated[list[SourceConfig], Field(min_length=1)]
    """Sources of training data."""

    mixture: MixtureConfig | None = None
    """Shares of the tokens by source, in stages."""

    limit: LimitConfig | None = None
    """Train on a part of the data only, nested in any larger part: for ladders of data sizes."""

    validation: ValidationConfig = ValidationConfig()
    """Held-out data."""

    dev: ValidationConfig | None = None
    """Further held-out data, for choices: evaluations during the run, early stopping and the
    learning rates of a comparison use it, and data.validation is what is reported."""

    max_length: Count = 2048
    """Longest row in tokens."""

    packing: bool = True
    """Put several documents into one row; attention never crosses from one to another."""

    over_length: OverLength | None = None
    """What happens to longer documents; `split` for text and `drop` for the rest if left out."""

    loss_on: LossOn | None = None
    """Tokens learned from; `all` for text, `assistant` (`completion`) for the rest if left out."""

    chat_template: str | None = None
    """`chatml`, `plain`, a file, or Jinja text; the tokenizer's own when left out."""

    template_kwargs: dict[str, Any] = {}
    """Further variables for the chat template."""

    shuffle: bool = True
    """New order each epoch, from train.seed."""

    num_workers: Count | None = None
    """Processes that tokenise; one per core when left out."""

    cache_dir: UserPath | None = None
    """Folder of tokenised data; ~/.cache/ds-train (or $DS_TRAIN_CACHE) when left out."""
