"""The machines of a plan: a file of ds_configs/clusters/, the command line, or this CPU.

Bandwidths are those that vendors quote: `intra` of one GPU to the others of its node, both
directions together (NVLink 4: 900 GB/s; half of it counts each way); `inter` of one GPU's share of
the node's network, each way (400 Gbit/s for each GPU: 50 GB/s).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ds_train.config.yaml_strict import parse_yaml
from ds_train.errors import ConfigError
from ds_train.plan.presets import ds_configs_dir
from ds_train.units import parse_bytes, parse_count


@dataclass(frozen=True)
class Cluster:
    """Nodes that are all alike. Bytes, bytes a second, operations a second; None: not known."""

    name: str
    nodes: int
    gpus: int
    """Of a node; of a CPU the processes."""
    gpu_memory: int | None = None
    reserved: int = 0
    """What CUDA's context and NCCL's buffers take of it before the first tensor."""
    flops_16: float | None = None
    """Dense peak in bf16 and fp16."""
    flops_32: float | None = None
    """Dense peak in fp32."""
    intra: float | None = None
    inter: float | None = None
    host_memory: int | None = None
    host_link: float | None = None
    """Between a GPU and its host, each way."""
    nvme: float | None = None
    """Of a node's disks, reading or writing."""
    is_cpu: bool = False
    keeps_freed: bool = True
    """Whether malloc keeps what is freed, as glibc's does; of a CPU (`cpu_heap.py`)."""

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self.nodes * self.gpus

    def bandwidth(self, ranks: int | None = None) -> float | None:
        """Bytes a second that one rank sends in a ring over all ranks (or some, in a node).

        NCCL's rings leave a node through all of its network ports at once, so that a node's
        links to others carry gpus x inter; inside, each GPU sends at half of `intra`.
        """
        inside = self.intra / 2 if self.intra is not None else None
        if self.nodes == 1 or (ranks is not None and ranks <= self.gpus):
            return inside
        if self.inter is None:
            return None
        outside = self.inter * self.gpus
        return outside if inside is None else min(inside, outside)


_BYTES = ("gpu_memory", "reserved", "host_memory")
_RATES = ("intra", "inter", "host_link", "nvme")
_COUNTS = ("nodes", "gpus")
_FLOPS = ("flops_16", "flops_32")
_SWITCHES = ("is_cpu", "keeps_freed")


def parse_rate(value: object) -> float:
    """Bytes a second from '900GB/s' or '50 GB/s'; ValueError with the rule."""
    text = str(value).strip()
    if not text.lower().endswith("/s"):
        raise ValueError(f"{value!r} is not a bandwidth; write it like 50GB/s")
    return float(parse_bytes(text[:-2].strip()))


def _parse(key: str, value: object) -> Any:
    if key in _BYTES:
        return parse_bytes(value)
    if key in _RATES:
        return parse_rate(value)
    if key in _COUNTS:
        count = parse_count(value)
        if count < 1:
            raise ValueError(f"{value!r} must be at least 1")
        return count
    if key in _FLOPS:
        return float(parse_count(value))
    if key in _SWITCHES and isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is not what it takes")


def read_cluster(path_or_name: str, setting: str = "--cluster") -> Cluster:
    """A cluster file: a path, or the name of one of ds_configs/clusters/.

    `setting`: what said it, for the message.

    Raises ConfigError with every fault.
    """
    folder = ds_configs_dir() / "clusters"
    path = Path(path_or_name).expanduser()
    if not path.is_file():
        path = folder / f"{Path(path_or_name).stem}.yaml"
    if not path.is_file():
        names = sorted(one.stem for one in folder.glob("*.yaml"))
        near = get_close_matches(path_or_name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f'{setting} = "{path_or_name}": no such file, and no cluster of that name; there are '
            f"{', '.join(names)}.{hint}"
        )
    document = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    raw = document.value if isinstance(document.value, dict) else {}
    known = [field.name for field in fields(Cluster) if field.name != "name"]
    faults, values = list(document.faults), {}
    for key, value in raw.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" There are {', '.join(known)}."
            faults.append(f"{path}: {key}: no such setting of a cluster.{hint}")
            continue
        try:
            values[key] = _parse(key, value)
        except ValueError as error:
            faults.append(f"{path}: {key}: {error}.")
    faults += [f"{path}: {key} is missing; say how many." for key in _COUNTS if key not in raw]
    if faults:
        raise ConfigError(faults)
    return Cluster(name=path.stem, **values)


def with_options(cluster: Cluster, options: dict[str, Any]) -> Cluster:
    """What the command line says laid over it; None is not said. ConfigError with every fault."""
    faults, values = [], {}
    for key, value in options.items():
        if value is None:
            continue
        try:
            values[key] = _parse(key, value)
        except ValueError as error:
            faults.append(f"--{key.replace('_', '-')}: {error}.")
    if faults:
        raise ConfigError(faults)
    return replace(cluster, **values)
