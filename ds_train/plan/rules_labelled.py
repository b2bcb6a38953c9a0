"""Settings of labelled sources (`labels`, `template`) that can't work."""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.config.data import LABELLED_FORMATS, SourceConfig


def labelled_rules(name: str, source: SourceConfig) -> Iterator[str]:
    """Faults of one source, which stands at `name` in the recipe."""
    for field, formats in (("labels", LABELLED_FORMATS[:1]), ("template", LABELLED_FORMATS)):
        if source.format not in (None, *formats) and getattr(source, field):
            yield (
                f"{name}.{field}: format = {source.format} has no use for it (only "
                f"{' and '.join(formats)}); remove it."
            )
    yield from _templates(name, source)


def _templates(name: str, source: SourceConfig) -> Iterator[str]:
    given = source.template
    texts = [given] if isinstance(given, str) else given or []
    wanted, what = "{text}", "text to classify"
    if source.format == "multiple_choice":
        wanted, what = "{prompt}", "question"
    for number, text in enumerate(texts):
        place = f"{name}.template" + ("" if isinstance(given, str) else f"[{number}]")
        if wanted not in text and not (source.format is None and "{prompt}" in text):
            yield f'{place} = "{text}": must contain {wanted}, where the {what} is put.'
