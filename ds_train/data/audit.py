"""What became of every source's rows: counted while tokenising, shown, and saved with the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ds_train.data.store import TokenStore

COUNTS = {
    "rows": "rows read",
    "truncated": "rows cut at max_length",
    "split": "rows split into pieces",
    "split_pieces": "pieces that split rows became",
    "pieces_unsupervised": "pieces left out since nothing in them is learned from",
    "dropped_too_long": "rows left out since they are longer than max_length",
    "dropped_unsupervised": "rows left out since nothing in them is learned from",
    "dropped_tokens": "tokens lost to drop and truncate",
    "boundary_tokens": "learned tokens that begin before what is learned",
    "unknown_tokens": "tokens for text that the vocabulary does not have",
}
"""Counts kept while tokenising."""

Audit = dict[str, Any]


def audit_source(
    store: TokenStore, index: int, counts: Mapping[str, int], first_of_kind: np.ndarray
) -> Audit:
    """Numbers of one source; first_of_kind: bool [N], False for samples seen before."""
    members = store.sources == index
    lengths, supervised = store.lengths[members], store.supervised[members]
    num_tokens = int(lengths.sum(dtype=np.int64))
    num_supervised = int(supervised.sum(dtype=np.int64))
    return {
        **{name: int(counts.get(name, 0)) for name in COUNTS},
        "samples": len(lengths),
        "tokens": num_tokens,
        "supervised_tokens": num_supervised,
        "supervised_share": num_supervised / num_tokens if num_tokens else 0.0,
        "duplicates": int((~first_of_kind[members]).sum()),
        "length_percentiles": _percentiles(lengths),
    }


def first_of_kind(store: TokenStore) -> np.ndarray:
    """bool [N]: False for a sample whose content an earlier sample has."""
    first = np.zeros(store.num_samples, bool)
    first[np.unique(store.hashes, return_index=True)[1]] = True
    return first


def _percentiles(lengths: np.ndarray) -> dict[str, int]:
    if len(lengths) == 0:
        return {}
    values = np.percentile(lengths, [50, 90, 99, 100], method="inverted_cdf")
    return dict(zip(("p50", "p90", "p99", "max"), map(int, values), strict=True))


def audit_part(part: TokenStore) -> Audit:
    """Numbers of the training, dev or validation part; `examples` where they are labelled."""
    examples = {} if part.examples is None else {"examples": part.examples.num_examples}
    return examples | {
        "samples": part.num_samples,
        "tokens": part.num_tokens,
        "supervised_tokens": part.num_supervised,
    }


def format_audit(audit: Audit) -> str:
    """The audit as text for people: a table with a line per source, then what needs a word."""
    header = ["source", "rows", "samples", "tokens", "learned", "cut", "split", "dropped"]
    header += ["same", "p50", "p90", "p99", "max"]
    lines = [header, *(_table_line(one) for one in audit["sources"])]
    text = [_align(lines), ""]
    text += [note for one in audit["sources"] for note in _notes(one)]
    if subset := audit.get("subset"):
        text.append(_subset_note(subset))
    for name in ("train", "dev", "validation"):
        if part := audit.get(name):
            rendered = part.get("examples", part["samples"]) != part["samples"]
            examples = f"{part['examples']:,} examples as " if rendered else ""
            text.append(
                f"{name}: {examples}{part['samples']:,} samples, {part['tokens']:,} tokens, "
                f"{part['supervised_tokens']:,} learned from"
            )
    if leaked := audit.get("validation_in_train"):
        what = "example" if "examples" in audit["validation"] else "sample"
        are = f"{what} is" if leaked == 1 else f"{what}s are"
        text.append(f"validation: {leaked:,} {are} also trained on")
    text.append(
        f"max_length {audit['max_length']:,}; chat template: {audit['chat_template'] or 'none'}; "
        f"data fingerprint {audit['fingerprint'][:12]}"
    )
    return "\n".join(text)


def _table_line(source: Audit) -> list[str]:
    dropped = source["dropped_too_long"] + source["dropped_unsupervised"]
    numbers = [source["rows"], source["samples"], source["tokens"]]
    later = [source["truncated"], source["split"], dropped, source["duplicates"]]
    lengths = [source["length_percentiles"].get(name, 0) for name in ("p50", "p90", "p99", "max")]
    return [
        source["name"],
        *(f"{number:,}" for number in numbers),
        f"{source['supervised_share']:.1%}",
        *(f"{number:,}" for number in [*later, *lengths]),
    ]


def _align(lines: Sequence[Sequence[str]]) -> str:
    """Columns under one another: the first to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _notes(source: Audit) -> list[str]:
    """What a reader should know of a source beside its numbers."""
    notes = [
        f"{source['name']}: format {source['format']}, {source['how']}; "
        f"loss on {source['loss_on']}; longer rows: {source['over_length']}"
    ]
    if templates := source.get("templates"):
        notes.append(f"{source['name']}: {_renderings_note(source, len(templates))}")
    for name in COUNTS:
        if name != "rows" and source[name]:
            notes.append(f"{source['name']}: {source[name]:,} {COUNTS[name]}")
    return notes


def _renderings_note(source: Audit, num_templates: int) -> str:
    """How the examples of a labelled source are rendered."""
    texts = source["choice_texts"]
    shown = ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "") if texts else ""
    answers = f"{len(texts):,} classes ({shown})" if texts else "answers of each row's own"
    each = "each with every answer" if source["all_choices"] else "each with the right answer"
    return f"{num_templates} {'template' if num_templates == 1 else 'templates'}, {each}; {answers}"


def _subset_note(subset: Audit) -> str:
    """What fewshot.subset has chosen, in one line."""
    groups = "classes" if subset["per"] == "class" else "sources"
    dev = f", {subset['num_dev']:,} for dev" if subset["dev"] else ""
    return (
        f"fewshot.subset {subset['hash'][:12]}: {subset['k']:,} of each of "
        f"{subset['num_classes']:,} {groups}, seed {subset['seed']}: {subset['num_train']:,} to "
        f"train{dev}"
    )


def merge_counts(counts: Sequence[Counter[str]]) -> list[dict[str, int]]:
    """Counts of every source with each name present, as they are stored."""
    return [{name: one[name] for name in COUNTS} for one in counts]
