"""Which hosts of a launch answer, and what the launcher is told about those that are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ds_train.launch.hostfile import Slots

_PLACES = (
    *("-i", "--include", "-e", "--exclude", "--num_nodes", "--num_gpus"),
    *("--num_accelerators", "-H", "--hostfile"),
)


def find_lost(hosts: Sequence[str], ask: Callable[[str], str | None]) -> dict[str, str]:
    """Host -> why it can't be used, of those that can't; all are asked at once.

    `ask`: why a host can't be used, None if it can.
    """
    with ThreadPoolExecutor(min(64, max(1, len(hosts)))) as pool:
        answers = zip(hosts, pool.map(ask, hosts), strict=True)
        return {host: why for host, why in answers if why is not None}


def left_arguments(
    slots: Slots, lost: Mapping[str, str], hostfile: str, given: Sequence[str]
) -> list[str]:
    """The launcher's arguments for the hosts that are left, in the place of what chose them.

    Args:
        slots: host -> accelerators of the launch that failed; given: the user's arguments.
    """
    left = {host: some for host, some in slots.items() if host not in lost}
    chosen = "@".join(f"{host}:{','.join(map(str, some))}" for host, some in left.items())
    if next(iter(slots)) in lost:
        given = _without(given, ("--master_addr",))  # rank 0 is elsewhere now
    arguments = ["--hostfile", hostfile, "--include", chosen, *_without(given, _PLACES)]
    # one host of a hostfile would be taken for this machine
    return [*arguments, "--force_multi"] if len(left) == 1 else arguments


def _without(given: Sequence[str], names: Sequence[str]) -> list[str]:
    """The arguments but for some that have a value, and for --force_multi."""
    kept, skip = [], False
    for word in given:
        name, equals, _ = word.partition("=")
        goes = name in names
        if not skip and not goes and word != "--force_multi":
            kept.append(word)
        skip = goes and not skip and not equals
    return kept
