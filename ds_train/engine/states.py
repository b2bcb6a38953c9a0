"""The trainable state, as this rank holds it: fp32 weights and the optimizer's tensors.

Under ZeRO each rank updates a part of every parameter. A `Piece` says which part, and its tensors
are views of the optimizer's own memory, so a checkpoint is written and read without a collective
and without any rank holding more than its own part. Only an adapter in PEFT's format needs whole
weights: `whole_params` gathers them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from ds_train.engine.piece import Piece, SavedStates, State
from ds_train.launch.marks import tick


class TrainedStates:
    """Reads and writes them under any ZeRO stage."""

    def __init__(self, engine: Any) -> None:
        """`engine`: DeepSpeed's."""
        self._engine = engine
        self._stage: int = engine.zero_optimization_stage()

    @property
    def are_shared_out(self) -> bool:
        """Whether each rank holds a part; at stage 0 each holds all."""
        return self._stage > 0

    @property
    def optimizes_directly(self) -> bool:
        """Stage 0 in fp32: DeepSpeed steps the torch optimizer itself and keeps no norm."""
        return self._engine.optimizer is self._engine.basic_optimizer

    @property
    def stay_in_place(self) -> bool:
        """Whether a piece's tensors are good until the next update; not if they lie on NVMe."""
        return self._stage < 3 or not any(
            self._engine.optimizer._swappable_optimizer_subgroup(number)
            for number in range(len(self.partitions()))
        )

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name (of the model inside our wrapper) and parameter of everything that trains."""
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix("model."), parameter

    def shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Of the whole parameter, whatever this rank holds of it."""
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def partitions(self) -> list[Tensor]:
        """The fp32 tensors that this rank's optimizer updates."""
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        groups = self._engine.basic_optimizer.param_groups
        return [tensor for group in groups for tensor in group["params"]]

    def pieces(self) -> Iterator[Piece]:
        """This rank's part of all that trains.

        Use each before the next one is asked for, unless they `stay_in_place`.
        """
        self._create(None)
        yield from self._pieces(is_written=False)

    def write(self, saved: SavedStates, num_updates: int) -> None:
        """Put saved states back. A collective call.

        Args:
            num_updates: updates that the optimizer had made, for its bias correction.
        """
        self._create(num_updates)
        for piece in self._pieces(is_written=True):
            tick()
            for key, tensor in piece.tensors.items():
                flat = tensor.data.view(-1)
                stop = piece.start + flat.numel()
                flat.copy_(saved.read(piece.name, key, piece.start, stop))
        if not self.are_shared_out:
            self._write_further(saved)
        self._publish()

    def _write_further(self, saved: SavedStates) -> None:
        """Stage 0: tensors that the optimizer makes at its first update only (Adafactor)."""
        for name, parameter in self.trainable():
            master = self._master(parameter)
            state = self._engine.basic_optimizer.state[master]
            for key in set(saved.keys_of(name)) - {"param", *state}:
                state[key] = saved.read(name, key).to(master.device)

    def whole_params(self) -> Iterator[tuple[str, Tensor]]:
        """Name and fp32 weight of all that trains, whole, on the CPU. A collective call."""
        for name, parameter in self.trainable():
            tick()
            weight = (
                safe_get_full_fp32_param(parameter)
                if self.are_shared_out
                else self._master(parameter)
            )
            yield name, weight.detach().float().cpu().view(self.shape(parameter))

    def _pieces(self, *, is_written: bool) -> Iterator[Piece]:
        if self._stage == 3:
            yield from self._pieces_of_stage_3(is_written=is_written)
            return
        for name, parameter in self.trainable():
            shape = self.shape(parameter)
            if not self.are_shared_out:
                master = self._master(parameter)
                tensors = {"param": master.detach(), **_tensors(self._state_of(master))}
                yield Piece(name, shape, 0, tensors)
            elif (mapping := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
                tensors = {"param": mapping.hp_fragment.detach(), **mapping.optim_fragment}
                yield Piece(name, shape, mapping.lp_fragment_address.start, tensors)

    def _pieces_of_stage_3(self, *, is_written: bool) -> Iterator[Piece]:
        """Group by group, as a group on NVMe is read and written as one."""
        optimizer = self._engine.optimizer
        found: dict[int, list[tuple[str, nn.Parameter, int]]] = {}
        for name, parameter in self.trainable():
            place = optimizer.grad_position[optimizer.get_param_id(parameter)]
            number, offset, _ = place
            found.setdefault(number, []).append((name, parameter, offset))
        for number, members in found.items():
            with self._in_memory(number, is_written=is_written):
                partition = self.partitions()[number]
                flat = {"param": partition.detach(), **_tensors(self._state_of(partition))}
                for name, parameter, offset in members:
                    start, length = self._part_of(parameter)
                    if length > 0:  # the last ranks may hold nothing but padding
                        shape = self.shape(parameter)
                        tensors = {key: one.narrow(0, offset, length) for key, one in flat.items()}
                        yield Piece(name, shape, start, tensors)

    def _part_of(self, parameter: Any) -> tuple[int, int]:
        """ZeRO-3: first element of a parameter that this rank holds, and how many, unpadded."""
        size = parameter.ds_tensor.numel()
        start = size * self._engine.optimizer._get_param_partition_rank(parameter)
        return start, min(size, parameter.ds_numel - start)

    def _state_of(self, partition: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self._engine.basic_optimizer.state[partition]
        return state

    def _create(self, num_updates: int | None) -> None:
        """Adam's state, which it makes at its first update only; and its count of updates."""
        inner = self._engine.basic_optimizer
        counts_in_tensor = isinstance(inner, torch.optim.AdamW | torch.optim.Adafactor)
        for number, partition in enumerate(self.partitions()):
            state = inner.state[partition]
            if not state and num_updates is None and isinstance(inner, torch.optim.Adafactor):
                continue  # it makes a state of its own at its first update
            if not state and not isinstance(inner, torch.optim.Adafactor):
                with self._in_memory(number, is_written=True):
                    state["exp_avg"] = torch.zeros_like(partition.data)
                    state["exp_avg_sq"] = torch.zeros_like(partition.data)
            if num_updates is not None or "step" not in state:
                count = torch.tensor(float(num_updates or 0), device=partition.device)
                state["step"] = count if counts_in_tensor else num_updates or 0
        if self._stage in (1, 2):
            # DeepSpeed links parameters to optimizer tensors after its first group's first update,
            # once: those of further groups stay unlinked (seen in 0.19.8). So link them all again.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    @contextmanager
    def _in_memory(self, number: int, *, is_written: bool) -> Iterator[None]:
        """A partition that lies on NVMe is read before, and put back with its states after."""
        optimizer = self._engine.optimizer
        if self._stage < 3 or not optimizer._swappable_optimizer_subgroup(number):
            yield
            return
        optimizer._optimizer_states_and_gradient_swap_in(number)
        yield
        if is_written:
            optimizer._optimizer_states_and_gradient_swap_out(number)
        else:
            optimizer._release_swap_buffers(number)

    def _publish(self) -> None:
        """Carry the fp32 weights over to those that the model computes with."""
        optimizer = self._engine.optimizer
        if not self.are_shared_out:
            for _, parameter in self.trainable():
                parameter.data.copy_(self._master(parameter).data)
        elif self._stage in (1, 2):
            optimizer.update_lp_params()
        else:
            optimizer._partition_all_parameters()
            for index in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(index)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """Stage 0: the fp32 tensor that the optimizer updates for a parameter."""
        if self.optimizes_directly:
            return parameter
        optimizer = self._engine.optimizer
        for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for low, high in zip(lows, highs, strict=True):
                if low is parameter:
                    return high
        raise KeyError("not a parameter of the optimizer")


def _tensors(state: dict[str, Any]) -> State:
    """The optimizer's tensors without its counter."""
    return {k: v for k, v in state.items() if k != "step" and torch.is_tensor(v)}
