"""Everything between the recipe's data section and token rows: tokenised once, then opened.

`prepare_data` runs in one process before any process group exists, and reads every byte to see
that the files are whole. Every rank then calls `open_data`, which only maps them (and makes them
where the launcher was started by hand). Both give the same PreparedData.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ds_train.config.data import LABELLED_FORMATS, LossOn, OverLength
from ds_train.config.files import model_positions
from ds_train.config.run import RunConfig
from ds_train.data.audit import merge_counts
from ds_train.data.columns import RowFormat
from ds_train.data.divide import PreparedData, divide
from ds_train.data.encode import TextEncoder, open_tokenizer
from ds_train.data.fingerprint import store_fingerprint
from ds_train.data.formats import choose_format
from ds_train.data.labelled import labels_of, templates_of
from ds_train.data.read import Row, read_rows
from ds_train.data.renderings import (
    all_choices,
    check_same_words,
    keeps_examples,
    plan_labels,
    recipe_wants_examples,
)
from ds_train.data.sources import Source, list_names, resolve_sources
from ds_train.data.store import TokenStore, cannot_write, remove_store, store_fault
from ds_train.data.store_writer import StoreWriter
from ds_train.data.templates import ChatTemplate, choose_template
from ds_train.data.tokenise import Job, SourcePlan, tokenise_sources
from ds_train.errors import DataError
from ds_train.locks import locked
from ds_train.paths import default_cache_dir
from ds_train.units import format_seconds


def prepare_data(config: RunConfig, say: Callable[[str], object] = print) -> PreparedData:
    """Tokenises the recipe's data, or opens it when that was done before."""
    check_max_length(config)
    sources = resolve_sources(config.data)
    folder = store_folder(config, sources)
    _make(config, sources, folder, checksums=True, say=say)
    return divide(config, sources, TokenStore.open(folder), folder.name)


def open_data(config: RunConfig) -> PreparedData:
    """Opens what prepare_data made; the first rank of a machine makes it where nobody did."""
    sources = resolve_sources(config.data)
    folder = store_folder(config, sources)
    _make(config, sources, folder, checksums=False, say=lambda text: None)
    return divide(config, sources, TokenStore.open(folder), folder.name)


def _make(
    config: RunConfig,
    sources: Sequence[Source],
    folder: Path,
    *,
    checksums: bool,
    say: Callable[[str], object],
) -> None:
    """Tokenise into `folder` unless it is there and whole; one process at a time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    with locked(folder.with_name(f".{folder.name}.lock")):
        fault = store_fault(folder, checksums=checksums)
        if fault is None:
            say(f"data: tokenised before, {folder}")
            return
        if folder.exists():
            say(f"data: {folder} is broken ({fault}); made anew")
            remove_store(folder)
        _tokenise(config, sources, folder, say)


def cache_folder(config: RunConfig) -> Path:
    """Folder that holds tokenised data of all recipes."""
    return Path(config.data.cache_dir or default_cache_dir())


def store_folder(config: RunConfig, sources: Sequence[Source]) -> Path:
    """Folder of this recipe's tokenised data, made or not."""
    cache = cache_folder(config)
    asked = recipe_wants_examples(config)
    examples = [all_choices(config, validation=part) for part in (False, True)] if asked else None
    return cache / store_fingerprint(config.data, config.model, sources, cache, examples)


def check_max_length(config: RunConfig) -> None:
    """DataError when rows could be longer than the model's positions, as its config says them."""
    limit = config.data.max_length
    if limit < 2:
        raise DataError(f"data.max_length = {limit}: nothing can be learned from single tokens.")
    positions = model_positions(config)
    if positions is not None and limit > positions:
        raise DataError(describe_max_length(config, positions))


def describe_max_length(config: RunConfig, positions: int) -> str:
    """The fault of rows longer than the model's positions."""
    return (
        f'data.max_length = {config.data.max_length:,}: the model "{config.model.name_or_path}" '
        f"reads at most {positions:,} positions; set data.max_length to {positions:,} or less."
    )


def _tokenise(
    config: RunConfig, sources: Sequence[Source], folder: Path, say: Callable[[str], object]
) -> None:
    """Reads, tokenises and publishes all sources."""
    started = time.monotonic()
    tokenizer = open_tokenizer(config.model)
    data = config.data
    template = choose_template(data.chat_template, data.template_kwargs, tokenizer)
    plans, streams = _plan_sources(config, sources, template)
    for plan in plans:
        say(f"{plan.source.field} ({plan.source.name}): format {plan.form.name}, {plan.form.how}")
        if plan.labels is not None and plan.labels.words and not plan.source.config.labels:
            found = f"{len(plan.labels.words):,} labels found in the data"
            where = f"{plan.source.field} ({plan.source.name})"
            say(f"{where}: {found}: {list_names(plan.labels.words)}")
    examples = any(plan.keeps_examples for plan in plans)
    job = Job(plans, TextEncoder.of(tokenizer), template, data.max_length, examples)
    with StoreWriter(folder, job.encoder.vocab_size, examples=examples) as writer:
        counts, answers = tokenise_sources(job, streams, writer, data.num_workers)
        writer.meta["sources"] = [
            {**_plan_facts(plan, offered), "counts": own}
            for plan, own, offered in zip(plans, merge_counts(counts), answers, strict=True)
        ]
        writer.meta["chat_template"] = template.origin if template else None
    num_rows = sum(one["rows"] for one in counts)
    say(f"data: {num_rows:,} rows tokenised in {format_seconds(time.monotonic() - started)}")


def _plan_sources(
    config: RunConfig, sources: Sequence[Source], template: ChatTemplate | None
) -> tuple[tuple[SourcePlan, ...], list[Iterable[Row]]]:
    """How every source is read, from its first row; the faults of all sources at once."""
    plans: list[SourcePlan] = []
    streams: list[Iterable[Row]] = []
    faults: list[str] = []
    for source in sources:
        try:
            rows = read_rows(source)
            first = next(rows)
            form = choose_format(source, first, has_template=template is not None)
            needs_template = form.name in ("messages", "sharegpt")
            if needs_template and template is None:
                raise DataError(
                    f"{source.field}: format {form.name} needs a chat template, and the tokenizer "
                    "has none; set data.chat_template (chatml, plain, a file, or Jinja text)."
                )
            is_text = form.name == "text"
            over_length = config.data.over_length or ("split" if is_text else "drop")
            plans.append(_plan_source(config, source, form, over_length, plans))
            streams.append(itertools.chain([first], rows))
        except DataError as error:
            faults += error.faults
    if faults:
        raise DataError(faults)
    return tuple(plans), streams


def _plan_source(
    config: RunConfig,
    source: Source,
    form: RowFormat,
    over_length: OverLength,
    before: Sequence[SourcePlan],
) -> SourcePlan:
    loss_on, labels = _loss_on(config, source, form), None
    keeps = keeps_examples(config, source, form)
    if keeps and form.name in LABELLED_FORMATS:
        # Where the only training source has its labels in the data, a validation source may lack
        # some of them, and has the same classes all the same.
        trained = [one for one in before if one.labels is not None and not one.source.validation]
        found = [
            one.labels.words
            for one in trained
            if one.labels is not None and one.labels.words and not one.source.config.labels
        ]
        known = found[0] if source.validation and len(found) == 1 else ()
        labels = plan_labels(config, source, form, loss_on, over_length, known)
        if source.validation:
            check_same_words(source, labels, [one.source for one in trained])
    return SourcePlan(source, form, loss_on, over_length, labels, keeps)


def _loss_on(config: RunConfig, source: Source, form: RowFormat) -> LossOn:
    """The policy in force: the source's own, the recipe's, or the format's."""
    if form.name == "text":
        if source.config.loss_on not in (None, "all"):
            raise DataError(
                f"{source.field}.loss_on = {source.config.loss_on}: format text has no parts; "
                "all of it is learned from."
            )
        return "all"
    default: LossOn = "assistant" if form.as_chat else "completion"
    return source.config.loss_on or config.data.loss_on or default


def _plan_facts(plan: SourcePlan, offered: set[frozenset[str]]) -> dict[str, Any]:
    """What the store remembers of a source; `offered`: see tokenise_sources."""
    facts: dict[str, Any] = {
        "format": plan.form.name,
        "how": plan.form.how,
        "columns": dict(plan.form.columns),
        "loss_on": plan.loss_on,
        "over_length": plan.over_length,
    }
    if plan.labels is not None:
        shared = sorted(next(iter(offered))) if len(offered) == 1 else None
        facts["templates"] = templates_of(plan.source, plan.form)
        facts["choice_texts"] = shared if plan.labels.words is None else list(plan.labels.words)
        facts["choice_labels"] = labels_of(plan.source, facts["choice_texts"])
        facts["all_choices"] = plan.labels.all_choices
    return facts
