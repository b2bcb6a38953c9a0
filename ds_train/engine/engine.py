"""DeepSpeed, and the only file that imports it.

`Engine` keeps the contract that the step relies on: gradients add up over micro-batches and
ranks and are never averaged, the gradient norm is known at every stage, and the trainable state
can be read and written parameter by parameter, whole, whatever the ZeRO stage and the number of
ranks.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig
from transformers.utils import logging as transformers_logging

from ds_train.config.train import TrainConfig
from ds_train.data.batch import Batch
from ds_train.data.slice import slice_batch
from ds_train.engine.pull import PullToStart
from ds_train.engine.ranks import Ranks
from ds_train.engine.thaw import Thaw, restart_count
from ds_train.engine.traffic import Traffic
from ds_train.launch.marks import tick
from ds_train.model.quiet import quieten_libraries
from ds_train.model.shared_rows import SharedRows, WholeRows, share_rows

Groups = list[dict[str, Any]]
State = dict[str, Tensor]

_SCALER_KEYS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def start_process_group(ranks: Ranks, timeout_seconds: float = 1800.0) -> None:
    """Join the other ranks (NCCL on GPUs, gloo on the CPU); a collective may take so long."""
    _quieten(ranks)
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # DeepSpeed would compile a shared-memory all-reduce at every start on a CPU (up to 100 s,
        # and 66 MiB of /dev/shm per rank that nobody frees). gloo does the work.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    if ranks.world_size == 1:
        defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        defaults |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        for key, value in defaults.items():
            os.environ.setdefault(key, value)
    timeout = timedelta(seconds=timeout_seconds)
    deepspeed.init_distributed(dist_backend=None, verbose=False, timeout=timeout)


def _quieten(ranks: Ranks) -> None:
    """Leave out what says nothing to a user: it hides the lines that do."""
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch renamed; torch says so at every first call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    quieten_libraries()
    # BF16_Optimizer prints memory tables whatever the log level.
    sys.modules["deepspeed.runtime.bf16_optimizer"].see_memory_usage = (  # type: ignore[attr-defined]
        lambda *args, **kwargs: None
    )
    if not ranks.is_main or not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


def stop_process_group() -> None:
    """Leave the others."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sharded_loading(ds_config: dict[str, Any], pretrained: bool) -> HfDeepSpeedConfig | None:
    """Under ZeRO-3, what makes transformers load weights into shards, as long as it is kept."""
    if ds_config["zero_optimization"]["stage"] == 3 and pretrained:
        return HfDeepSpeedConfig(ds_config)
    return None


def build_engine(
    model: nn.Module,
    groups: Groups,
    *,
    train: TrainConfig,
    ds_config: dict[str, Any],
    coalesce: bool,
    ranks: Ranks,
) -> Engine:
    """Hand the model and its optimizer to DeepSpeed.

    Ranks that share rows are not told to it: every rank is one of n whose gradients are averaged,
    at every stage, which `backward` undoes. Told of them, DeepSpeed 0.19 divides by another number
    at stage 3 than at 0 to 2.
    """
    thaw = Thaw(groups)  # before DeepSpeed takes the groups apart
    shared = _shared_rows(model, ranks)
    optimizer, optimizer_name = _build_optimizer(groups, train, offloads_optimizer(ds_config))
    wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    return Engine(
        wrapped, ranks, train, thaw, coalesce=coalesce, optimizer_name=optimizer_name, shared=shared
    )


def _shared_rows(model: Any, ranks: Ranks) -> SharedRows | None:
    """Attention that exchanges between the ranks of a row; None where each has rows of its own."""
    size = ranks.sequence_parallel_size
    if size == 1:
        return None
    group = _sequence_group(size, ranks)

    def all_to_all(output: Tensor, sent: Tensor) -> None:
        deepspeed.comm.all_to_all_single(output, sent, group=group)  # seen by its comms logger

    return share_rows(model.model, size, all_to_all)


@cache
def _sequence_group(size: int, ranks: Ranks) -> Any:
    """This rank's group of `size` neighbours; every rank has to make all of them."""
    groups = [
        deepspeed.comm.new_group(list(range(first, first + size)))
        for first in range(0, ranks.world_size, size)
    ]
    return groups[ranks.dp_rank]


def shard_for_inference(model: nn.Module, dtype: str, ranks: Ranks) -> ShardedModel:
    """Hand a whole model to ZeRO-3, which leaves each rank its part; a collective call.

    Args:
        model: `LanguageModel` on the CPU; dtype: of its weights, bf16, fp16 or fp32.
    """
    config = {
        "train_micro_batch_size_per_gpu": 1,
        # parameters that are never sharded would hide what is not gathered
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": dtype == "bf16"},
        "fp16": {"enabled": dtype == "fp16"},
        "steps_per_print": 2**31 - 1,
    }
    wrapped, *_ = deepspeed.initialize(model=model, config=config)
    return ShardedModel(wrapped, ranks)


class ShardedModel:
    """A model under ZeRO-3 that answers and does not train."""

    def __init__(self, engine: Any, ranks: Ranks) -> None:
        self._engine = engine
        self.ranks = ranks
        self.train_mode(False)

    @property
    def module(self) -> nn.Module:
        """The module under DeepSpeed."""
        return self._engine.module

    def label_losses(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """`LanguageModel.forward` itself, per token; every rank has to call it as often."""
        tick()
        losses, correct = self._engine(*args, per_token=True, **kwargs)
        return losses, correct

    def train_mode(self, training: bool) -> None:
        """Dropout on or off."""
        self._engine.train(training)


def offloads_optimizer(ds_config: dict[str, Any]) -> bool:
    """Whether the optimizer works on the host beside a GPU, in DeepSpeed's own C++.

    Without a GPU torch's fused AdamW does the same work, and nothing has to be compiled.
    """
    offload = ds_config["zero_optimization"].get("offload_optimizer") or {}
    return offload.get("device", "none") != "none" and torch.cuda.is_available()


def _build_optimizer(
    groups: Groups, train: TrainConfig, offload: bool
) -> tuple[torch.optim.Optimizer, str]:
    # The learning rate is set before every step; until then it must be 0, not a default.
    if train.optim == "adafactor":
        optimizer = torch.optim.Adafactor(groups, lr=0.0)
        return optimizer, "Adafactor (torch)"
    kwargs: dict[str, Any] = {
        "lr": 0.0,
        "betas": (train.adam_beta1, train.adam_beta2),
        "eps": train.adam_epsilon,
    }
    if offload:
        try:
            from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiles C++: only when wanted

            return DeepSpeedCPUAdam(groups, adamw_mode=True, **kwargs), "DeepSpeedCPUAdam"
        except (RuntimeError, OSError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            return torch.optim.AdamW(groups, **kwargs), (
                f"AdamW (torch) on the CPU, as DeepSpeedCPUAdam did not build: {reason}"
            )
    return torch.optim.AdamW(groups, fused=True, **kwargs), "AdamW (torch, fused)"


class Engine:
    """A model under DeepSpeed whose gradients add up."""

    def __init__(
        self,
        engine: Any,
        ranks: Ranks,
        train: TrainConfig,
        thaw: Thaw,
        *,
        coalesce: bool,
        optimizer_name: str,
        shared: SharedRows | None = None,
    ) -> None:
        self._engine = engine
        self._thaw = thaw
        self.shared = shared
        self.ranks = ranks
        self.traffic = Traffic(deepspeed.comm.comm, ranks)
        self.optimizer_name = optimizer_name
        self._coalesce = coalesce
        self._max_grad_norm = train.max_grad_norm
        self._plain_grad_norm: float | None = None
        self.stage: int = engine.zero_optimization_stage()
        if self._optimizes_directly:
            engine.optimizer.register_step_pre_hook(self._clip_before_step)
        elif self.stage == 0:
            # DeepSpeed made the state with a step on zero gradients, which Adam's bias correction
            # would count; without it the first update is that of every other stage.
            engine.basic_optimizer.state.clear()
        if train.l2_sp is not None:  # after clipping, whose hook stands before it
            PullToStart(
                engine.basic_optimizer,
                self._partitions(),
                weight=train.l2_sp,
                dtype=next(parameter for _, parameter in self.trainable()).dtype,
            )

    @property
    def _optimizes_directly(self) -> bool:
        """Stage 0 in fp32: DeepSpeed steps the torch optimizer itself and keeps no norm."""
        return self._engine.optimizer is self._engine.basic_optimizer

    @property
    def module(self) -> nn.Module:
        """The module under DeepSpeed."""
        return self._engine.module

    def share(self, batch: Batch) -> Batch:
        """This rank's part of a batch of whole rows; all of it where ranks do not share them."""
        if self.shared is None:
            return batch
        return slice_batch(batch, self.ranks.sequence_rank, self.shared.size)

    def forward(self, batch: Batch) -> Tensor:
        """Loss sum over the micro-batch's supervised tokens, [] fp32."""
        loss_sum: Tensor = self._forward(batch)[0]
        return loss_sum

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each position's loss [b, t] fp32, zero where ignored, and whether its argmax is right."""
        return self._forward(batch, per_token=True)

    def logprobs(self, batch: Batch) -> Tensor:
        """Each label's log-probability [b, t] fp32, zero where ignored, differentiable."""
        logprobs: Tensor = self._forward(batch, logprobs=True)[0]
        return logprobs

    def _forward(self, batch: Batch, *, per_token: bool = False, logprobs: bool = False) -> Any:
        self._attend_in(batch.whole)
        tick()
        return self._engine(
            batch.input_ids,
            batch.labels,
            batch.position_ids,
            num_supervised=batch.num_supervised,
            per_token=per_token,
            logprobs=logprobs,
        )

    def label_losses(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """`LanguageModel.forward` itself, per token: for evaluation with inputs of another form."""
        self._attend_in(None)
        tick()
        losses, correct = self._engine(*args, per_token=True, **kwargs)
        return losses, correct

    def _attend_in(self, rows: WholeRows | None) -> None:
        """Whose rows the attention sees, in this forward pass and its backward pass."""
        if self.shared is not None:
            self.shared.rows = rows

    def accumulate(self) -> AbstractContextManager[None]:
        """Around all backwards of one step: reduces gradients once, at the end, if coalescing."""
        return self._engine.coalesce_grad_reduction() if self._coalesce else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add this loss's gradients. DeepSpeed averages over all ranks, which is undone here."""
        tick()
        self._engine.backward(loss * self.ranks.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Update the weights; returns the global gradient norm before clipping.

        inf where fp16 overflowed: the loss scale was lowered and the weights left alone.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0) * self._thaw.rate(group)
        self._engine.step()
        self.traffic.num_alike += 1
        if self._optimizes_directly:
            assert self._plain_grad_norm is not None
            return self._plain_grad_norm
        if getattr(self._engine.optimizer, "overflow", False):
            return float("inf")
        return float(self._engine.get_global_grad_norm())

    def _clip_before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = self._max_grad_norm or float("inf")
        self._plain_grad_norm = float(nn.utils.clip_grad_norm_(parameters, limit))

    @property
    def last_stage(self) -> int:
        """Stage of gradual unfreezing in which everything trains; 0 without."""
        return self._thaw.last_stage

    def thaw(self, stage: int) -> None:
        """Gradual unfreezing: parameter groups up to `stage` train from the next step on."""
        for joining in range(self._thaw.stage + 1, stage + 1):
            restart_count(self._states_of(joining), 0)
        self._thaw.stage = stage

    def resume_thaw(self, joined_at: Sequence[int]) -> None:
        """Stage k + 1 had joined after `joined_at[k]` updates; after `write_states`."""
        num_updates = self.num_updates
        self._thaw.stage = len(joined_at)
        for stage, joined in enumerate(joined_at, start=1):
            restart_count(self._states_of(stage), num_updates - joined)

    def _states_of(self, stage: int) -> list[dict[str, Any]]:
        """Optimizer states of the groups that join at a stage, as far as they are made."""
        inner = self._engine.basic_optimizer
        states = []
        for number, partition in enumerate(self._partitions()):
            if self._group_of(number).get("stage") == stage and partition in inner.state:
                states.append(inner.state[partition])
        return states

    def _group_of(self, number: int) -> dict[str, Any]:
        """The optimizer group of a partition."""
        groups: Any = self._engine.basic_optimizer.param_groups
        if self.stage == 3:
            return dict(groups[self._engine.optimizer.sub_group_to_group_id[number]])
        of_each = [group for group in groups for _ in group["params"]]
        return dict(of_each[number])

    def train_mode(self, training: bool) -> None:
        """Dropout on or off; a collective call under ZeRO-3."""
        self._engine.train(training)
        self.traffic.num_alike = 0
        if self.stage == 3:
            _forget_trace(self._engine.optimizer.parameter_offload.get_param_coordinator())

    # The trainable state, parameter by parameter, whole and on the CPU.

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name (of the model inside our wrapper) and parameter of everything that trains."""
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix("model."), parameter

    def read_states(self) -> Iterator[tuple[str, State]]:
        """Name, fp32 "param" and optimizer tensors of all that trains. A collective call."""
        self._create_states(None)
        keys = sorted(_tensors(self._engine.basic_optimizer.state[self._partitions()[0]]))
        for name, parameter in self.trainable():
            tick()
            yield name, self._read_state(parameter, keys)

    def _read_state(self, parameter: nn.Parameter, keys: list[str]) -> State:
        if self.stage == 0:
            master = self._master(parameter)
            tensors = {"param": master, **_tensors(self._engine.basic_optimizer.state[master])}
        else:
            tensors = {"param": safe_get_full_fp32_param(parameter)}
            for key in keys:
                tensors[key] = safe_get_full_optimizer_state(parameter, key)
        shape = getattr(parameter, "ds_shape", parameter.shape)
        return {  # fp32, also of bf16 optimizer states: a checkpoint does not depend on them
            key: tensor.detach().float().cpu().view(shape)
            if tensor.numel() == shape.numel()
            else tensor
            for key, tensor in tensors.items()
        }

    def write_states(self, states: Iterator[tuple[nn.Parameter, State]], num_steps: int) -> None:
        """Set what `read_states` returned for every trainable parameter. A collective call.

        Args:
            num_steps: updates that the optimizer had made, for its bias correction.
        """
        self._create_states(num_steps)
        for parameter, tensors in states:
            tensors = {key: tensor.to(self.ranks.device) for key, tensor in tensors.items()}
            if self.stage == 0:
                self._write_unsharded(parameter, tensors)
                continue
            set_weight, set_state = safe_set_full_fp32_param, safe_set_full_optimizer_state
            if self.stage == 3:
                tensors = self._share_of(parameter, tensors)
                set_weight, set_state = safe_set_local_fp32_param, safe_set_local_optimizer_state
            set_weight(parameter, tensors.pop("param"))
            for key, tensor in tensors.items():
                set_state(parameter, tensor, key)
        self._publish()

    def _share_of(self, parameter: nn.Parameter, tensors: State) -> State:
        """ZeRO-3: this rank's shares [n] of a parameter's whole tensors, filled up with zeros.

        DeepSpeed's own setter of whole tensors fails on the last rank where a parameter does not
        divide over the ranks (0.19.8).
        """
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        first = size * self._engine.optimizer._get_param_partition_rank(parameter)
        parts = {key: whole.flatten()[first : first + size] for key, whole in tensors.items()}
        return {
            key: nn.functional.pad(part, (0, size - part.numel())) for key, part in parts.items()
        }

    @property
    def num_updates(self) -> int:
        """Updates that the optimizer has made; fewer than the steps where fp16 overflowed."""
        states = self._engine.basic_optimizer.state
        return max((int(state["step"]) for state in states.values() if "step" in state), default=0)

    @property
    def loss_scale(self) -> dict[str, float]:
        """State of fp16's dynamic loss scale; empty in other dtypes."""
        scaler = self._loss_scaler()
        return {key: getattr(scaler, key) for key in _SCALER_KEYS if hasattr(scaler, key)}

    @loss_scale.setter
    def loss_scale(self, saved: dict[str, float]) -> None:
        for key, value in saved.items():
            setattr(self._loss_scaler(), key, value)

    def _loss_scaler(self) -> Any:
        optimizer = self._engine.optimizer
        if not self._engine.fp16_enabled():
            return None
        return getattr(optimizer, "loss_scaler", None) or optimizer.loss_scale_config

    def _partitions(self) -> list[Tensor]:
        """The fp32 tensors that this rank's optimizer updates."""
        if self.stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        groups = self._engine.basic_optimizer.param_groups
        return [tensor for group in groups for tensor in group["params"]]

    def _create_states(self, num_steps: int | None) -> None:
        """Adam's state, which it makes at its first update only; and its count of updates."""
        inner = self._engine.basic_optimizer
        counts_in_tensor = isinstance(inner, torch.optim.AdamW | torch.optim.Adafactor)
        for number, partition in enumerate(self._partitions()):
            state = inner.state[partition]
            if not state and num_steps is None and isinstance(inner, torch.optim.Adafactor):
                continue  # it makes a state of its own at its first update
            if not state and not isinstance(inner, torch.optim.Adafactor):
                with self._in_memory(number):
                    state["exp_avg"] = torch.zeros_like(partition.data)
                    state["exp_avg_sq"] = torch.zeros_like(partition.data)
            if num_steps is not None or "step" not in state:
                count = torch.tensor(float(num_steps or 0), device=partition.device)
                state["step"] = count if counts_in_tensor else num_steps or 0
        if self.stage in (1, 2):
            # DeepSpeed links parameters to optimizer tensors after its first group's first update,
            # once: those of further groups stay unlinked (seen in 0.19.8). So link them all again.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    @contextmanager
    def _in_memory(self, number: int) -> Iterator[None]:
        """A partition that lies on NVMe is read before, and written with its states after."""
        optimizer = self._engine.optimizer
        if self.stage < 3 or not optimizer._swappable_optimizer_subgroup(number):
            yield
            return
        optimizer._optimizer_states_and_gradient_swap_in(number)
        yield
        optimizer._optimizer_states_and_gradient_swap_out(number)

    def _publish(self) -> None:
        """Carry the fp32 weights over to those that the model computes with."""
        optimizer = self._engine.optimizer
        if self.stage in (1, 2):
            optimizer.update_lp_params()
        elif self.stage == 3:
            optimizer._partition_all_parameters()
            for index in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(index)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """Stage 0: the fp32 tensor that the optimizer updates for a parameter."""
        if self._optimizes_directly:
            return parameter
        optimizer = self._engine.optimizer
        for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for low, high in zip(lows, highs, strict=True):
                if low is parameter:
                    return high
        raise KeyError("not a parameter of the optimizer")

    def _write_unsharded(self, parameter: nn.Parameter, tensors: State) -> None:
        master = self._master(parameter)
        value = tensors.pop("param")
        master.data.copy_(value)
        parameter.data.copy_(value)
        self._engine.basic_optimizer.state[master].update(tensors)


def _forget_trace(coordinator: Any) -> None:
    """Make ZeRO-3 record the order of modules anew, and what it may release after each.

    DeepSpeed 0.19.8 caches the latter for good, so what an evaluation (which has no backward pass)
    released would be released, and gathered again, in every training step: a model that fits into
    `stage3_max_live_parameters` was gathered four times in a step of two micro-batches instead of
    twice (ds_train/README.md).
    """
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
    wrapped = type(coordinator)._PartitionedParameterCoordinator__params_to_release
    for cell in wrapped.__closure__ or ():  # the cache is below a decorator without __wrapped__
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


def _tensors(state: dict[str, Any]) -> State:
    """The optimizer's tensors without its counter."""
    return {k: v for k, v in state.items() if k != "step" and torch.is_tensor(v)}
