"""The last part of what is sent to a host: answers one command a line, until its input ends.

After probe_machine and probe_network, in the same namespace.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MARK = "@@ds-train-doctor "
"""Before each answer: a login shell may print what it likes."""


def answer(line: Any, functions: Any) -> Any:
    """The JSON line for a command {"do": name, ...arguments}."""
    command = json.loads(line)
    try:
        result = {"result": functions[command.pop("do")](**command)}
    except Exception as error:  # noqa: BLE001 (the caller judges it)
        result = {"error": f"{type(error).__name__}: {error}"}
    return MARK + json.dumps(result)


def main(functions: Any) -> Any:
    """Answer until the caller is gone."""
    for line in sys.stdin:
        print(answer(line, functions), flush=True)
