"""What the libraries that multiply matrices on a CPU keep of their own. A GPU run has none of it.

oneDNN, in 16 bits: each product of other sizes, or of another side transposed, is a primitive that
is compiled once and stays (1024 of them): 0.57 MB of tables, and its code. MKL, in fp32: the panels
into which it has packed its operands, for the next call. Both measured with torch 2.13, one thread,
AMX: resident memory before and after a product of new sizes, its operands taken off.

Experts are not counted: the number of their tokens, and so of sizes, is that of the data.
"""

from __future__ import annotations

from collections.abc import Iterator

from ds_train.plan.execution import backward_order, forward_order
from ds_train.plan.loss_memory import columns_at_once
from ds_train.plan.setting import Setting

PROCESS_BYTES = 520_000_000
"""Of a process before the model: measured, 473 to 552 MB."""
PRIMITIVE_BYTES = 620_000
"""Of a primitive: 0.56 to 0.75 MB for widths of 8 to 1376, up to 1.7 MB for 2816."""
PANEL_BYTES = 12_000_000
"""Most that MKL was seen to keep is 14 MB; less where the largest weight is smaller."""


def library_bytes(setting: Setting) -> int:
    """Of one process in training; 0 on a GPU."""
    if not setting.cluster.is_cpu:
        return 0
    if setting.width == 4:
        shape = setting.trainable.shape
        weights = [one.num_elements for one in shape.modules if one.is_linear]
        columns = columns_at_once(setting) or shape.vocab
        weights.append(columns * shape.hidden)  # the output layer, tied or not
        return min(PANEL_BYTES, 4 * max(weights))
    return PRIMITIVE_BYTES * len(set(products(setting)))


def products(setting: Setting) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """What is computed, for how many tokens, with a weight of which shape; some come often.

    Neither the output layer, which the loss computes itself, nor attention in the forward pass is
    among them; its backward pass has three.
    """
    trainable = setting.trainable
    units = forward_order(trainable)
    recompute = setting.config.model.gradient_checkpointing
    needed = {id(one) for one in backward_order(units, trainable, recompute=recompute)}
    if any(one.layer is not None and id(one) in needed for one in units):
        for what in ("to the queries", "to the keys", "to the values"):
            yield what, setting.length, (trainable.shape.head_dim,)
    for unit in units:
        module = unit.parameters[0].module
        if unit.layer is None or not module.is_linear:
            continue
        for one in unit.parameters:
            if len(one.shape) != 2:
                continue
            yield "forward", setting.tokens, one.shape
            if setting.config.data.packing:  # two rows of two short documents prove it at the start
                yield "forward", 32, one.shape
            if id(unit) in needed:
                yield "to the input", setting.tokens, one.shape
            if one.trains:
                yield "to the weight", setting.tokens, one.shape
