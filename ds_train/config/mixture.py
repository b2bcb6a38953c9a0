"""`data.mixture`: how many of a run's tokens come from which source, and when."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ds_train.config.base import Length, Section
from ds_train.config.curriculum import check_places


class MixtureStage(Section):
    """A part of the run with weights of its own."""

    until: Length | None = None
    """Where the stage ends: a share of the run or '2M tokens'; the last one ends with the run."""

    weights: dict[str, Annotated[float, Field(ge=0)]]
    """From the source's name to its share of the tokens; sources left out are not drawn."""

    @model_validator(mode="after")
    def _something_is_drawn(self) -> MixtureStage:
        if sum(self.weights.values()) == 0:
            raise ValueError("weights sum to 0, so that nothing would be drawn; raise one of them")
        return self


class MixtureConfig(Section):
    """Shares of the tokens, in stages or from the sources' sizes; replaces the weights of
    data.train."""

    temperature: Annotated[float, Field(gt=0)] | None = None
    """Instead of stages: shares of tokens ** (1 / temperature); 1 keeps the sources' sizes."""

    stages: list[MixtureStage] = []
    """Parts of the run, one after another."""

    max_epochs: dict[str, Annotated[float, Field(gt=0)]] = {}
    """From the source's name to its passes in the whole run, at most."""

    on_exhausted: Literal["renormalise", "repeat", "error"] = "renormalise"
    """After max_epochs: the other sources take its share, it goes on all the same (which is said),
    or the run is refused."""

    @model_validator(mode="after")
    def _stages_follow(self) -> MixtureConfig:
        if bool(self.stages) == (self.temperature is not None):
            raise ValueError("give either stages or temperature")
        untils = [stage.until for stage in self.stages]
        if None in untils[:-1]:
            raise ValueError("each of the stages but the last wants until")
        check_places("stages: until", [until for until in untils if until is not None])
        last = untils[-1] if untils else None
        if last is not None and last != 1.0:
            raise ValueError(
                f"stages end at {last}, and nothing says what comes after it; the last one wants "
                "until: 1.0, or none"
            )
        if 1.0 in untils[:-1]:
            raise ValueError("stages after the end: one of them begins where the run ends")
        return self
