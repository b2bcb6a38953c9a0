"""lm_eval's tasks by name, from its own collection or from YAML files of the user's.

Every fault of a task is one message that names it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from ds_train.config.run import RunConfig
from ds_train.errors import ConfigError, DataError, DsTrainError, quoted, reason
from ds_train.evaluate.task_files import with_data_files

MISSING = (
    "evaluation tasks need the package lm_eval, which is not installed; pip install "
    "'ds-train[eval]' or leave them out."
)
_PYTHON_SEED, _NUMPY_SEED = 0, 1234  # lm_eval's own, for tasks that shuffle while they load


def is_installed() -> bool:
    """Whether lm_eval is there, without importing it."""
    return importlib.util.find_spec("lm_eval") is not None


def open_tasks(names: Sequence[str], task_path: str | Path | None = None) -> dict[str, Any]:
    """lm_eval's `TaskDict` of some tasks, groups, tags, patterns (`blimp_*`) or YAML files.

    Raises:
        ConfigError: lm_eval is missing, or there is no such task; DataError: one can't be loaded.
    """
    if not is_installed():
        raise ConfigError(MISSING)
    if task_path is not None and not Path(task_path).is_dir():
        raise ConfigError(f"task_path = {quoted(task_path)}: no such folder.")
    quieten()
    manager, chosen = _find(names, task_path)
    with _seeded():
        tasks = _load(manager, chosen)
    for name, task in tasks["tasks"].items():
        _name_faults(name, task)
    return tasks


def open_recipe_tasks(config: RunConfig) -> dict[str, Any]:
    """The tasks of a recipe; faults as in `open_tasks`, with the field's name."""
    evaluate = config.evaluate
    try:
        loaded = open_tasks(evaluate.tasks, evaluate.task_path)
        for shots in evaluate.shots:
            check_pools(loaded, shots)
    except ConfigError as error:
        raise ConfigError([f"evaluate.{fault}" for fault in error.faults]) from None
    return loaded


def check_pools(loaded: dict[str, Any], shots: int) -> None:
    """ConfigError where a task has fewer documents to draw from than demonstrations are wanted."""
    for name, task in loaded["tasks"].items():
        if task.get_config("num_fewshot") == 0:
            continue  # it is never given any
        pool = getattr(getattr(task, "sampler", None), "df", None)
        if pool is not None and len(pool) < shots:
            raise ConfigError(
                f"shots = {shots}: task {name} has {len(pool)} documents to draw demonstrations "
                "from; ask for fewer."
            )


def quieten() -> None:
    """Leave out the harness's own bars and remarks: a line for each of them is said by us."""
    import datasets
    import lm_eval.api.task

    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # no forks of a process with threads
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = lambda items, **_: items


def _find(names: Sequence[str], task_path: str | Path | None) -> tuple[Any, list[str]]:
    """A manager that knows all the names, and the names without patterns.

    lm_eval's own collection takes seconds to read: only where the folder has not all of them.
    """
    if task_path is not None:
        manager = _manager(task_path, include_defaults=False)
        chosen, unknown = _match(names, manager)
        if not unknown and not any(name in manager.all_groups for name in chosen):
            return manager, chosen
    manager = _manager(task_path, include_defaults=True)
    chosen, unknown = _match(names, manager)
    if unknown:
        raise ConfigError([_unknown(name, manager, task_path) for name in unknown])
    return manager, chosen


def _match(names: Sequence[str], manager: Any) -> tuple[list[str], list[str]]:
    """(names of tasks, names that are none); patterns are replaced by what they match."""
    chosen: list[str] = []
    unknown: list[str] = []
    for name in names:
        if name in manager.task_index or (name.endswith(".yaml") and Path(name).is_file()):
            chosen.append(name)
        elif found := manager.match_tasks([name]):
            chosen += sorted(found)
        else:
            unknown.append(name)
    return list(dict.fromkeys(chosen)), unknown


def _unknown(name: str, manager: Any, task_path: str | Path | None) -> str:
    """One message about a task that is not there; why, if a file of the folder can't be read."""
    where = "" if task_path is None else f", nor in {quoted(task_path)}"
    text = f"tasks: {quoted(name)}: no such task of lm_eval{where}"
    own = [] if task_path is None else _manager(task_path, include_defaults=False).all_tasks
    if task_path is not None and (broken := _unreadable(Path(task_path))):
        return f"{text}; {broken[0]}"
    for names in (own, manager.all_tasks):
        if near := get_close_matches(name, names, n=1, cutoff=0.6):
            return f"{text}. Did you mean {near[0]}?"
    if task_path is None:
        return f"{text}; a folder of your own YAML files is given by task_path (--task-path DIR)."
    return f"{text}; that folder has {_some(own)}."


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(names[:8]) or "no tasks"
    return listed + (", ..." if len(names) > 8 else "")


def _unreadable(folder: Path) -> list[str]:
    """What is wrong with the YAML files of a folder, which lm_eval skips without a word."""
    from lm_eval.tasks._index import TaskIndex

    found = []
    for path in sorted(folder.glob("**/*.yaml")):
        try:
            TaskIndex.entry_from_path(path)
        except Exception as error:  # noqa: BLE001 (whatever a file of the user's sets off)
            found.append(f"{quoted(path)} can't be read: {reason(error)}")
    return found


def _manager(task_path: str | Path | None, include_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._factory import TaskFactory

    class Factory(TaskFactory):
        """Makes paths of data files absolute before a task reads them."""

        def _load_full_config(
            self, entry: Any, overrides: dict[str, Any] | None = None
        ) -> dict[str, Any]:
            config: dict[str, Any] = super()._load_full_config(entry, overrides)
            return with_data_files(config, entry.yaml_path)

    manager = TaskManager(
        include_path=None if task_path is None else str(task_path),
        include_defaults=include_defaults,
    )
    manager._factory = Factory()
    return manager


def _load(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    """All tasks of the names, with their data."""
    loaded: list[Any] = []
    for name in names:
        try:
            one = manager.load([name])
        except DsTrainError:
            raise
        except Exception as error:  # a task is code and data of the user's
            raise DataError(f"task {name}: can't be loaded ({_said(error)}).") from error
        loaded.append(one)
    tasks = {name: task for one in loaded for name, task in one["tasks"].items()}
    groups = {name: group for one in loaded for name, group in one["groups"].items()}
    members = {name: group.child_names for name, group in groups.items()}
    return {"tasks": tasks, "groups": groups, "group_map": members}


def _name_faults(name: str, task: Any) -> None:
    """What a task's own templates and data set off while its requests are built names the task."""
    build = task.build_all_requests

    def build_all_requests(**kwargs: Any) -> None:
        try:
            build(**kwargs)
        except DsTrainError:
            raise
        except Exception as error:  # a task is code and data of the user's
            raise DataError(
                f"task {name}: its requests can't be built ({_said(error)})."
            ) from error

    task.build_all_requests = build_all_requests


def _said(error: Exception) -> str:
    """What an error says, with its kind where that alone says little."""
    text = reason(error)
    if isinstance(error, KeyError):
        return f"there is no {text}"
    if type(error).__name__ == "UndefinedError":  # of jinja2
        return f"a template asks for a column that is not there: {text}"
    return text if " " in text else f"{type(error).__name__}: {text}"


@contextmanager
def _seeded() -> Iterator[None]:
    """Python's and numpy's generators as lm_eval seeds them; as they were before afterwards."""
    python, array = random.getstate(), np.random.get_state()
    random.seed(_PYTHON_SEED)
    np.random.seed(_NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
