"""A model under DeepSpeed, with the contract that the step relies on.

Gradients add up over micro-batches and ranks and are never averaged, the gradient norm is known at
every stage, and the trainable state can be read and written as this rank holds it, whatever the
ZeRO stage and the number of ranks. Only the modules of this folder import DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from ds_train.config.train import TrainConfig
from ds_train.data.batch import Batch
from ds_train.data.slice import slice_batch
from ds_train.engine.piece import SavedStates
from ds_train.engine.pull import PullToStart
from ds_train.engine.ranks import Ranks
from ds_train.engine.states import TrainedStates
from ds_train.engine.thaw import Thaw, restart_count
from ds_train.engine.trace import forget_trace
from ds_train.engine.traffic import Traffic
from ds_train.launch.marks import tick
from ds_train.model.shared_rows import SharedRows, WholeRows

_SCALER_KEYS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


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
        self._coalesce, self._max_grad_norm = coalesce, train.max_grad_norm
        self._plain_grad_norm: float | None = None
        self._readers: list[Callable[[], None]] = []
        self.states = TrainedStates(engine)
        self.stage: int = engine.zero_optimization_stage()
        if self.states.optimizes_directly:
            engine.optimizer.register_step_pre_hook(self._clip_before_step)
        elif self.stage == 0:
            # DeepSpeed made the state with a step on zero gradients, which Adam's bias correction
            # would count; without it the first update is that of every other stage.
            engine.basic_optimizer.state.clear()
        if train.l2_sp is not None:  # after clipping, whose hook stands before it
            PullToStart(
                engine.basic_optimizer,
                self.states.partitions(),
                weight=train.l2_sp,
                dtype=next(parameter for _, parameter in self.states.trainable()).dtype,
            )

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
        scale = self.ranks.world_size * self._forgotten_scale
        self._engine.backward(loss * scale, scale_wrt_gas=False)

    @property
    def _forgotten_scale(self) -> float:
        """Stage 0 in fp16: the loss scale, by which DeepSpeed divides gradients and multiplies no
        loss (0.19.8); 1 elsewhere."""
        if self.stage > 0 or not self._engine.fp16_enabled():
            return 1.0
        return float(self._loss_scaler().cur_scale)

    def step(self, learning_rate: float) -> float:
        """Update the weights; returns the global gradient norm before clipping.

        inf where fp16 overflowed: the loss scale was lowered and the weights left alone.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0) * self._thaw.rate(group)
        self._let_readers_finish()
        scale = self._forgotten_scale  # the step may change it, and leaves the norm scaled
        self._engine.step()
        self.traffic.num_alike += 1
        if self.states.optimizes_directly:
            assert self._plain_grad_norm is not None
            return self._plain_grad_norm
        if getattr(self._engine.optimizer, "overflow", False):
            return float("inf")
        return float(self._engine.get_global_grad_norm()) / scale

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
        for number, partition in enumerate(self.states.partitions()):
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
            forget_trace(self._engine.optimizer.parameter_offload.get_param_coordinator())

    # The trainable state, as this rank holds it.

    def read_behind(self, wait: Callable[[], None]) -> None:
        """Somebody reads `states` beside the steps: `wait` is called before they change."""
        self._readers.append(wait)

    def _let_readers_finish(self) -> None:
        while self._readers:
            self._readers.pop()()

    def write_states(self, saved: SavedStates, num_updates: int) -> None:
        """Put saved states back, after `num_updates` of the optimizer. A collective call."""
        self._let_readers_finish()
        self.states.write(saved, num_updates)

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
