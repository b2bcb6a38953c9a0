"""Settings of the `data` section that can't work; see rules.py."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.run import RunConfig
from ds_train.plan.rules_labelled import labelled_rules


def data_rules(config: RunConfig) -> Iterator[str]:
    """Faults of the row length and of each source."""
    data = config.data
    if data.max_length < 2:
        yield (
            "data.max_length = 1: a row needs at least 2 tokens, one to read and one to predict."
        )
    sources = [(f"data.train[{i}]", source) for i, source in enumerate(data.train)]
    sources += [
        (f"data.validation.sources[{i}]", source)
        for i, source in enumerate(data.validation.sources)
    ]
    dev = [] if data.dev is None else data.dev.sources
    sources += [(f"data.dev.sources[{i}]", source) for i, source in enumerate(dev)]
    for name, source in sources:
        loss_on, place = source.loss_on, f"{name}.loss_on"
        if loss_on is None:
            loss_on, place = data.loss_on, "data.loss_on"
        if source.format == "text" and loss_on not in (None, "all"):
            yield (
                f"{place} = {loss_on}: {name} is plain text, which has no {loss_on}; set "
                f"{name}.loss_on: all."
            )
        yield from labelled_rules(name, source)
