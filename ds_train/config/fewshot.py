"""The `fewshot` section: learning from a handful of labelled examples.

`subset` keeps k examples of each class, `episodes` puts demonstrations of the same task before
each query, and `losses` score every candidate answer of an example (T-Few). Each works without the
others.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ds_train.config.base import Count, Natural, Section

Weight = Annotated[float, Field(ge=0)]


class SubsetConfig(Section):
    """k examples of each class, the same ones whatever the order of the file."""

    k: Count
    """Examples of each class (or source) that are trained on."""

    seed: Natural | None = None
    """Another seed draws other examples; under one seed the smaller k lies within the larger.
    train.seed when left out, so that every seed of a comparison draws its own."""

    per: Literal["class", "source"] = "class"
    """What k counts: the examples of each class of a source, or of the source as a whole."""

    dev: bool = True
    """As many examples again, none of them trained on: what the run is evaluated on as it goes."""


class EpisodesConfig(Section):
    """Rows of k demonstrations and a query of the same task; the sources are the tasks."""

    k: Natural = 4
    """Demonstrations before each query; 0 is plain training on the tasks, the control."""

    shots: list[Natural] | None = None
    """Numbers of demonstrations with which data.validation is evaluated; 0 and k when left out."""

    order: Literal["random", "balanced"] = "random"
    """Drawn from all examples of the task, or from its classes in turn."""

    label_overlap: bool = True
    """A demonstration may have the query's answer."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Tasks are drawn in proportion to examples ** (1 / temperature); 1 keeps their sizes."""

    permute_labels: bool = False
    """Swap the label words in each episode, so that only its demonstrations tell their meaning."""

    direction: Literal["direct", "channel"] = "direct"
    """Answer given input, or input given answer."""

    loss_on: Literal["query", "all"] = "query"
    """Learn from the query's answer only, or from those of the demonstrations too."""

    separator: str = "\n\n"
    """Text between the examples of an episode."""

    answer_separator: str = "\n"
    """`channel`: text between the answer and the input that follows it."""

    held_out: list[str] = []
    """Sources that are only evaluated on; nothing of them may stand in another source."""

    @property
    def measured_shots(self) -> list[int]:
        """Numbers of demonstrations to evaluate with, ascending; the last is the run's own."""
        return sorted(set([0, self.k] if self.shots is None else self.shots))

    @field_validator("shots")
    @classmethod
    def _check_shots(cls, shots: list[int] | None) -> list[int] | None:
        if shots == []:
            raise ValueError("is empty; name at least one number of demonstrations, e.g. [0, 4]")
        return shots


class LossesConfig(Section):
    """Weights of the three losses of T-Few (Liu et al. 2022, arXiv 2205.05638, section 3.2)."""

    language_modelling: Weight = 1.0
    """Cross-entropy of the right answer."""

    unlikelihood: Weight = 1.0
    """-log(1 - p) of the tokens of the wrong answers."""

    length_normalised: Weight = 1.0
    """Cross-entropy among the candidates by the mean log-probability of their tokens."""

    max_negatives: Count | None = None
    """At most so many wrong answers of an example in a step, drawn anew each epoch; all of them
    when left out."""

    lm_mean: Literal["example", "token"] = "example"
    """Every example counts the same in language_modelling, or every token."""

    @model_validator(mode="after")
    def _something_is_learned(self) -> LossesConfig:
        if self.language_modelling == self.unlikelihood == self.length_normalised == 0:
            raise ValueError(
                "language_modelling, unlikelihood and length_normalised are 0, so that nothing "
                "would be learned; raise one"
            )
        return self


class FewshotConfig(Section):
    """Few-shot learning; what is left out is off."""

    subset: SubsetConfig | None = None
    """Train on k examples of each class."""

    episodes: EpisodesConfig | None = None
    """Train on demonstrations and a query."""

    losses: LossesConfig | None = None
    """Score every candidate answer; what T-Few trains with."""
