"""YAML as a recipe needs it: duplicate keys are faults, `1e-3` is a number, `no` is text.

PyYAML follows YAML 1.1, where `1e-3` is text, `no` and `on` are booleans, `12:30` is 750 and a
repeated key silently wins. Here numbers and booleans follow YAML 1.2, every key is text, and the
line of every key is kept for messages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_NULL = re.compile(r"~|null|Null|NULL|")
_TAG = "tag:yaml.org,2002:"


@dataclass
class Document:
    """What a YAML text says: its value, the line of each key, its faults."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which only our loader would read as a number."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text with unusual line ends only survives in double quotes, where they are escaped."""
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)

for _loader, _tag, _pattern, _first in (
    (_Loader, "bool", _BOOL, "tTfF"),
    (_Loader, "int", _INT, "-+0123456789"),
    (_Loader, "float", _FLOAT, "-+0123456789."),
    (_Loader, "null", _NULL, ["~", "n", "N", ""]),
    (_Loader, "merge", re.compile("<<"), "<"),
    (_Dumper, "float", _FLOAT, "-+0123456789."),
):
    _loader.add_implicit_resolver(
        _TAG + _tag, re.compile(f"^(?:{_pattern.pattern})$"), list(_first)
    )


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 16) if text.startswith("0x") else int(text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())


_Loader.add_constructor(_TAG + "int", _construct_int)
_Loader.add_constructor(_TAG + "float", _construct_float)


def parse_yaml(text: str, where: str) -> Document:
    """Read YAML; `where` is the name used in faults. Never raises for faulty text."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            document = Document()
            if node is not None:
                _walk(loader, node, (), document, where)
                document.value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        return Document(faults=[_yaml_fault(error, where)])
    return document


def dump_yaml(value: Any) -> str:
    """YAML that `parse_yaml` reads back as the same value, keys in their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def _walk(loader: _Loader, node: Any, path: KeyPath, document: Document, where: str) -> None:
    """Turn keys into text, note the line of each and report keys that are written twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
            _walk(loader, item, (*path, index), document, where)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            document.faults.append(
                f"{where}, line {line}: a key must be text; is a {{ }} or a quote missing here?"
            )
            continue
        if key.tag == _TAG + "merge":
            continue
        key.tag = _TAG + "str"
        if key.value in seen:
            name = dotted((*path, key.value))
            document.faults.append(
                f"{where}, line {line}: {name} is written twice (first on line "
                f"{seen[key.value]}); remove one of them."
            )
        seen.setdefault(key.value, line)
        document.lines[(*path, key.value)] = line
        _walk(loader, value, (*path, key.value), document, where)


def _yaml_fault(error: yaml.YAMLError, where: str) -> str:
    """One sentence with line and column out of PyYAML's several lines."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{where}{place}: not valid YAML: {problem}{_yaml_remedy(problem)}"


def _yaml_remedy(problem: str) -> str:
    if "\\t" in problem:
        return "; indent with spaces, not with tabs."
    if "mapping values are not allowed" in problem:
        return "; put text that has a colon in it in quotes, and check the indentation."
    if "expected a single document" in problem:
        return "; a recipe is one document, remove the line ---."
    if "expected ',' or" in problem:
        return "; a bracket, brace or comma is missing before this place."
    return "; check brackets, quotes and indentation above this place."


def dotted(path: KeyPath) -> str:
    """`data.train[0].path` from ('data', 'train', 0, 'path')."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
