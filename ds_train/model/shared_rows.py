"""Attention over rows whose positions are shared by several ranks (sequence parallelism).

Each of n ranks holds t positions of a row of n t. Around the model's own attention they exchange
positions for heads (Jacobs et al., "DeepSpeed Ulysses", arXiv 2309.14509): each rank then sees
the whole row for h / n of its heads, and gets its positions of all heads back afterwards::

    [b, h, t, d] x n ranks -> all-to-all -> [b, h / n, n t, d] -> attention -> all-to-all -> back

Documents of a packed row attend each on their own, so that no mask of [n t, n t] is ever made; a
kernel sees plain causal attention. Everything else of the model works on single positions and does
not know that its neighbours are elsewhere; `train/guard.py` tries that on the model itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ds_train.errors import ConfigError
from ds_train.model.shareable import SETTING, why_not_shared

AllToAll = Callable[[Tensor, Tensor], Any]
"""(output, input) [n, m]: row i of the input goes to rank i, row j of the output is from rank j."""

_ATTRIBUTE = "shared_rows"
_OF_THE_PART = ("position_ids", "cache_position")
"""What models hand to their attention about positions: here of one part only, and not needed."""


@dataclass(frozen=True)
class WholeRows:
    """The rows that a batch holds one part of (data/slice.py)."""

    length: int
    """Of a row, all parts together."""
    starts: tuple[tuple[int, ...], ...]
    """Where the documents of each row begin; the first begins at 0."""


class SharedRows:
    """What the attention of one model needs to know, layer after layer."""

    def __init__(self, size: int, all_to_all: AllToAll) -> None:
        self.size = size
        self._all_to_all = all_to_all
        self.rows: WholeRows | None = None
        """Of the forward pass under way, and of its backward pass, which may repeat it; None
        where each rank has rows of its own."""
        self.num_calls = 0
        """Attention layers that have exchanged."""

    def attend(
        self, core: Any, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **given: Any
    ) -> tuple[Tensor, None]:
        """Attention output [b, t, h, d] of this rank's positions.

        Args:
            core: the model's own attention function, as transformers registers it.
            query: [b, h, t, d]; key, value: [b, kv heads, t, d], repeated where they are too few.
            given: further arguments of `core`.
        """
        self.num_calls += 1
        _refuse_tensors(module, given)
        copies = self.size // math.gcd(self.size, key.shape[1])
        key, value = (one.repeat_interleave(copies, dim=1) for one in (key, value))
        groups = query.shape[1] // key.shape[1]
        with _groups_of(module, groups):
            output = self._of_documents(core, module, self._gather(query, key, value), given)
        return self._scatter(output), None

    def _gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """[b, h, t, d] of all heads -> [b, h / n, n t, d] of all positions, in one exchange."""
        n = self.size
        blocks = [one.unflatten(1, (n, -1)).transpose(0, 1) for one in tensors]  # [n, b, h/n, t, d]
        sent = torch.cat([one.reshape(n, -1) for one in blocks], dim=1)
        received = _Exchange.apply(sent, self._all_to_all)
        parts = received.split([one[0].numel() for one in blocks], dim=1)
        return tuple(
            part.view(one.shape).permute(1, 2, 0, 3, 4).flatten(2, 3)
            for part, one in zip(parts, blocks, strict=True)
        )

    def _scatter(self, output: Tensor) -> Tensor:
        """[b, n t, h / n, d] of all positions -> [b, t, h, d] of all heads."""
        n = self.size
        blocks = output.unflatten(1, (n, -1)).transpose(0, 1)  # [n, b, t, h / n, d]
        received = _Exchange.apply(blocks.reshape(n, -1), self._all_to_all)
        return received.view(blocks.shape).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _of_documents(
        self, core: Any, module: nn.Module, tensors: tuple[Tensor, ...], given: dict[str, Any]
    ) -> Tensor:
        """Attention [b, n t, h / n, d] of each document for itself."""
        assert self.rows is not None
        length, starts = self.rows.length, self.rows.starts
        if len(set(starts)) == 1:  # rows alike go through together, as those of one document do
            return _by_document(core, module, tensors, (*starts[0], length), given)
        rows = [tuple(one[row : row + 1] for one in tensors) for row in range(len(starts))]
        return torch.cat(
            [
                _by_document(core, module, row, (*begins, length), given)
                for row, begins in zip(rows, starts, strict=True)
            ]
        )


def _by_document(
    core: Any,
    module: nn.Module,
    tensors: tuple[Tensor, ...],
    borders: tuple[int, ...],
    given: dict[str, Any],
) -> Tensor:
    outputs = []
    for start, stop in pairwise(borders):
        mask = _window_mask(stop - start, given.get("sliding_window"), module, tensors[0].device)
        own = [one[:, :, start:stop] for one in tensors]
        outputs.append(core(module, *own, mask, **given)[0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _window_mask(
    length: int, window: int | None, module: nn.Module, device: torch.device
) -> Tensor | None:
    """[1, 1, length, length] where a layer looks back over `window` positions only.

    Kernels of flash attention take the window itself. Without one a kernel's own causal mask does.
    """
    config: Any = getattr(module, "config", None)
    if window is None or length <= window or "flash" in str(config._attn_implementation):
        return None
    places = torch.arange(length, device=device)
    behind = places[:, None] - places
    return ((behind >= 0) & (behind < window))[None, None]


class _Exchange(torch.autograd.Function):
    """All-to-all; its gradient is the same exchange, which is its own inverse."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, all_to_all: AllToAll) -> Tensor:
        ctx.all_to_all = all_to_all
        received = torch.empty_like(sent)
        all_to_all(received, sent)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        received = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        ctx.all_to_all(received, gradient.contiguous())
        return received, None


@contextmanager
def _groups_of(module: Any, groups: int) -> Iterator[None]:
    """Query heads for each key head, as the model's attention function reads it off its module."""
    before = getattr(module, "num_key_value_groups", None)
    if before is None:
        yield
        return
    module.num_key_value_groups = groups
    try:
        yield
    finally:
        module.num_key_value_groups = before


def _refuse_tensors(module: nn.Module, given: dict[str, Any]) -> None:
    """Leave out what is about the part; any other tensor would have to be cut by heads."""
    for name in _OF_THE_PART:
        given.pop(name, None)
    tensors = [name for name, value in given.items() if isinstance(value, Tensor)]
    if tensors:
        raise ConfigError(
            f"{SETTING}: {type(module).__name__} gives its attention {', '.join(tensors)}, which "
            f"can't be shared between ranks; set {SETTING}: 1."
        )


def share_rows(model: nn.Module, size: int, all_to_all: AllToAll) -> SharedRows:
    """Make the attention layers of a Hugging Face (or PEFT) model exchange heads for positions.

    Other models of the process are left alone.

    Raises:
        ConfigError: an architecture or attention implementation with which this can't be done.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = getattr(model, "config")  # noqa: B009 (nn.Module's own type knows no config)
    text = config.get_text_config()
    name = text._attn_implementation
    if problem := why_not_shared(text, name or "eager", size):
        raise ConfigError(problem)
    shared = SharedRows(size, all_to_all)
    for module in model.modules():
        setattr(module, _ATTRIBUTE, shared)
    core = ALL_ATTENTION_FUNCTIONS[name]
    if not hasattr(core, _ATTRIBUTE):
        ALL_ATTENTION_FUNCTIONS[name] = _switched(core)
    return shared


def _switched(core: Any) -> Callable[..., Any]:
    """The attention function that asks its module whether rows are shared."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **given: Any,
    ) -> Any:
        shared: SharedRows | None = getattr(module, _ATTRIBUTE, None)
        if shared is None or shared.rows is None:
            return core(module, query, key, value, attention_mask, **given)
        # the mask is of this rank's positions only, and the documents are known without it
        return shared.attend(core, module, query, key, value, **given)

    setattr(attention, _ATTRIBUTE, True)
    return attention
