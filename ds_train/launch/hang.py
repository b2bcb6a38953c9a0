"""What a run that hangs waits for: which ranks had not come as far as the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ds_train.launch.notes import RankNote, place_of

_MANY = 8
"""Ranks that are named one by one."""


def describe_hang(
    notes: Mapping[int, RankNote],
    hosts: Mapping[int, str],
    stacks: Sequence[int],
    seconds: float | None,
) -> str:
    """One sentence without its full stop.

    Args:
        stacks: the ranks that have written theirs; seconds: without progress, of the recipe.
    """
    began = "the run hung" + (f": no progress for {seconds:g} s" if seconds is not None else "")
    silent = [rank for rank in sorted(set(hosts) | set(notes)) if rank not in stacks]
    if silent:
        return f"{began}. {_names(silent, notes, hosts)} wrote no stacks" + _last_seen(
            silent, notes
        )
    held = [rank for rank in stacks if rank in notes and notes[rank].state != "hung"]
    if held:
        what = "sits in C code that holds the interpreter's lock"
        return f"{began}. {_names(held, notes, hosts)} {what}" + _doing(notes[held[0]])
    known = {rank: notes[rank] for rank in stacks if rank in notes}
    if not known:
        return began
    furthest = max(known.values(), key=lambda note: note.position)
    behind = [rank for rank, note in known.items() if note.position < furthest.position]
    if behind:
        return (
            f"{began}. {_names(behind, notes, hosts)} had not come to where the others are "
            f"({_stand(furthest)}): {_stand(known[behind[0]])}"
        )
    return f"{began}. All ranks stand at the same place, {_groups(known, notes, hosts)}"


def _last_seen(silent: Sequence[int], notes: Mapping[int, RankNote]) -> str:
    seen = notes.get(silent[0])
    if seen is None:
        return " and never began"
    why = " (a process that is stopped, or a host that is lost)"
    return f"{why}; last seen in {seen.phase}, process {seen.pid} of {seen.host}"


def _doing(note: RankNote) -> str:
    return f", in {note.phase}"


def _stand(note: RankNote) -> str:
    where = f", in {note.where}" if note.where else ""
    return f"{note.phase}{where}"


def _groups(
    known: Mapping[int, RankNote], notes: Mapping[int, RankNote], hosts: Mapping[int, str]
) -> str:
    """Ranks by what their main threads do; fewest first, as the odd one is the likely cause."""
    groups: dict[str, list[int]] = defaultdict(list)
    for rank, note in known.items():
        groups[note.where].append(rank)
    first = next(iter(known.values()))
    place = f"{first.phase}: "
    ordered = sorted(groups.items(), key=lambda item: len(item[1]))
    return place + "; ".join(f"{_names(g, notes, hosts)} in {where}" for where, g in ordered)


def _names(ranks: Sequence[int], notes: Mapping[int, RankNote], hosts: Mapping[int, str]) -> str:
    named = ", ".join(place_of(rank, notes, hosts) for rank in ranks[:_MANY])
    return named + (f" and {len(ranks) - _MANY} more" if len(ranks) > _MANY else "")
