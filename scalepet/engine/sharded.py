"""The door to DeepSpeed: build a model into shards, start the engine, read and write what is
trained.

Everything below this file sees ordinary modules and full tensors; everything that knows how ZeRO
keeps them is here.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from scalepet import dist
from scalepet.backbones import building_under, full_shape
from scalepet.engine.ds_config import zero_stage
from scalepet.engine.gradient_watch import GradientWatch
from scalepet.engine.parameters import shard_of, trained_parameters, write_whole
from scalepet.engine.processes import quiet_deepspeed
from scalepet.engine.take_off import (
    forget_nodes,
    free,
    plain_linear_after,
    take_linear_of_shards,
    take_off,
)
from scalepet.engine.transit import rounding_frozen_only


@contextlib.contextmanager
def building_into_shards(ds_config: Mapping[str, Any]) -> Iterator[None]:
    """Models loaded inside are ZeRO-3 shards from their first module on; else no effect. With hpZ
    the process has one such model at a time.
    """
    if zero_stage(ds_config) < 3:
        yield
        return
    quiet_deepspeed()
    forget_nodes()
    with plain_linear_after(), building_under(ds_config):
        yield


@contextlib.contextmanager
def untrained(
    model: nn.Module, ds_config: Mapping[str, Any], device: torch.device
) -> Iterator[None]:
    """The model, which may have been built into shards, can be called inside; nothing is trained.

    Where it is sharded, a call takes all ranks together. What is attached to it may change between
    two of these, and training may follow.
    """
    if zero_stage(ds_config) < 3:
        model.to(device)
        yield
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with _started(model, ds_config, trained=trained):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _started(
    model: nn.Module,
    ds_config: Mapping[str, Any],
    *,
    trained: Collection[nn.Parameter],
    **options: Any,
) -> Iterator[tuple[Any, Any]]:
    """DeepSpeed's engine and optimizer on the model inside, and nothing of them after it.

    Args:
        options: of ``deepspeed.initialize``.
    """
    deepspeed = quiet_deepspeed()
    with plain_linear_after():
        with rounding_frozen_only(model, ds_config, trained=trained):
            engine, optimizer, *_ = deepspeed.initialize(
                model=model, config=dict(ds_config), **options
            )
        take_linear_of_shards(engine)
        try:
            yield engine, optimizer
            if zero_stage(ds_config) == 3:
                # A backward that stops at the frozen lowest layers leaves their weights gathered.
                engine.optimizer.empty_partition_cache()
        finally:
            take_off(engine, model)
            del engine, optimizer
            free()


@dataclass(frozen=True)
class AdamW:
    """Decoupled weight decay; one learning rate for the tuned parameters and one for the head."""

    learning_rate: float
    head_learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


_MOMENTS = ("exp_avg", "exp_avg_sq")

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""All that moves in DeepSpeed's dynamic loss scale."""


@dataclass(frozen=True)
class MasterShard:
    """The part of a trained parameter that this rank's optimizer moves.

    Attributes:
        start: place of its first number in the flat parameter.
        numbers: (length,) fp32, a view: on the device, or in host memory where the optimizer is
            offloaded. Over all ranks every number is there once.
    """

    start: int
    numbers: Tensor


class Engine:
    """A model that DeepSpeed trains.

    Args:
        model: frozen but for what a method and the head train; built inside
            ``building_into_shards``. It is nobody else's until ``close``, or to the end of a with.
        head_names: the trained parameters that get the head's learning rate.
        optimizer: its settings.
        ds_config: as ``compose_ds_config`` makes it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        head_names: Sequence[str],
        optimizer: AdamW,
        ds_config: Mapping[str, Any],
    ) -> None:
        trained = trained_parameters(model)
        head = [p for name, p in trained.items() if name in set(head_names)]
        tuned = [p for name, p in trained.items() if name not in set(head_names)]
        groups: list[dict[str, Any]] = [
            {"params": params, "lr": rate, "peak_lr": rate}
            for params, rate in (
                (tuned, optimizer.learning_rate),
                (head, optimizer.head_learning_rate),
            )
            if params  # an empty group breaks DeepSpeed
        ]
        self._group_of = {p: index for index, group in enumerate(groups) for p in group["params"]}
        self._adamw = torch.optim.AdamW(
            groups,
            betas=optimizer.betas,
            eps=optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
        )
        self.stage = zero_stage(ds_config)
        self.num_micro_batches = int(ds_config["gradient_accumulation_steps"])
        self.scales_loss = bool(ds_config["fp16"]["enabled"])
        with contextlib.ExitStack() as stack:
            self.gradients = GradientWatch(trained)
            stack.callback(self.gradients.close)
            self._engine, self._optimizer = stack.enter_context(
                _started(
                    model,
                    ds_config,
                    trained=trained.values(),
                    optimizer=self._adamw,
                    model_parameters=list(trained.values()),
                )
            )
            self._open = stack.pop_all()
        if self.scales_loss:
            # A run that goes on without steps is stopped in our words, not by a bare exception.
            self._engine.optimizer.loss_scaler.raise_error_at_min_scale = False

    @property
    def module(self) -> nn.Module:
        """The bare model with DeepSpeed's hooks on it: call it for evaluation and generation."""
        return self._engine.module  # type: ignore[no-any-return]

    @property
    def in_training(self) -> nn.Module:
        """What to call for a loss that goes backward: DeepSpeed counts micro-batches by these
        calls.

        At stage 3 a call of the bare module instead would silently keep the last micro-batch's
        gradient alone.
        """
        return self._engine  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    @property
    def is_sharded(self) -> bool:
        """Whether every forward is a collective of all ranks."""
        return self.stage == 3

    @property
    def num_trained(self) -> int:
        """How many numbers are trained, over all ranks."""
        return sum(math.prod(full_shape(p)) for p in trained_parameters(self.module).values())

    @property
    def num_frozen(self) -> int:
        """How many numbers of the backbone are not, tied ones counted once."""
        frozen = (p for p in self.module.parameters() if not p.requires_grad)
        return sum(math.prod(full_shape(p)) for p in frozen)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss``, averaged over ranks and micro-batches."""
        self._engine.backward(loss)

    def step(self) -> None:
        """After each micro-batch; the optimizer moves on the last one of a step."""
        is_last = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        if is_last:
            self.gradients.forget()

    def skip(self) -> None:
        """In place of ``step`` after the last micro-batch: the gradients are thrown away, and what
        is trained and its moments stay as they are, bit for bit.

        DeepSpeed goes through its step, which clears and counts, around an optimizer that does
        nothing.
        """
        self._adamw.step = lambda: None  # type: ignore[method-assign, assignment, misc]
        try:
            self.step()
        finally:
            del self._adamw.step

    @property
    def has_moved(self) -> bool:
        """Whether the last step moved what is trained; DeepSpeed leaves it out by itself where the
        gradient that was summed over ranks is not finite. The same on every rank.
        """
        return bool(self._engine.was_step_applied())

    def before_each_step(self, wait: Callable[[], None]) -> None:
        """Call ``wait`` before the optimizer moves anything, in every step from now on."""
        self._adamw.register_step_pre_hook(lambda *_: wait())

    def set_learning_rate_factor(self, factor: float) -> None:
        """The learning rate of every group becomes ``factor`` times its peak."""
        for group in self._optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]

    @property
    def learning_rate(self) -> float:
        """Of the tuned parameters (of the head where nothing else trains), as set."""
        return float(self._optimizer.param_groups[0]["lr"])

    def gradient_norm(self) -> float | None:
        """Norm of the last step's gradient before clipping, where DeepSpeed knows it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def read_trained(self) -> dict[str, Tensor]:
        """The trained parameters, whole, in fp32 on the CPU. All ranks together."""
        return dict(self.each_trained())

    def each_trained(self) -> Iterator[tuple[str, Tensor]]:
        """The same one by one, for what need not hold all of them at a time."""
        for name, parameter in trained_parameters(self.module).items():
            yield name, self._read(parameter)

    def read_optimizer(self) -> dict[str, Tensor]:
        """Both Adam moments of every trained parameter as ``NAME/exp_avg`` and so on; zeros where
        every step so far was left out. All ranks together.
        """
        self._link_moments()
        return {
            f"{name}/{moment}": self._read(parameter, moment)
            if self._has_moments
            else torch.zeros(full_shape(parameter))
            for name, parameter in trained_parameters(self.module).items()
            for moment in _MOMENTS
        }

    def read_adam_steps(self) -> dict[str, int]:
        """By how many steps Adam corrects its bias, for every trained parameter; not a
        collective.
        """
        return {
            name: int(self._adam_state(parameter)["step"]) if self._has_moments else 0
            for name, parameter in trained_parameters(self.module).items()
        }

    @property
    def _has_moments(self) -> bool:
        """Whether the optimizer has made its states, as it does when it first moves."""
        return any(self._adamw.state.values())

    def read_loss_scaler(self) -> dict[str, float]:
        """Where fp16's loss scale is; empty for other precisions. The same on every rank, and not a
        collective.
        """
        if not self.scales_loss:
            return {}
        return {name: getattr(self._engine.optimizer.loss_scaler, name) for name in _SCALER}

    def write_loss_scaler(self, numbers: Mapping[str, float]) -> None:
        """Go on where ``read_loss_scaler`` was called."""
        for name in _SCALER:
            if name in numbers:
                setattr(self._engine.optimizer.loss_scaler, name, numbers[name])

    def write_masters(self, trained: Mapping[str, Tensor]) -> None:
        """Go on from these fp32 numbers, of which the working copies hold what their type can.

        Before the first step. All ranks together.
        """
        parameters = trained_parameters(self.module)
        for name, whole in trained.items():
            self._write(parameters[name], whole)

    def restore(
        self,
        trained: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        *,
        adam_steps: Mapping[str, int],
        any_loss: Callable[[], Tensor],
    ) -> None:
        """Go on where ``read_trained``, ``read_optimizer`` and ``read_adam_steps`` were called,
        whatever the stage and world size then and now.

        The working copies must hold the same numbers already (``load_trained`` before the start).
        DeepSpeed makes its optimizer states in the first step, so one step with zero gradients and
        zero rate makes them here.

        Args:
            moments: of all trained parameters, or of those that do not start anew.
            any_loss: runs a forward of the model; its value does not matter.
        """
        self.set_learning_rate_factor(0.0)
        gpus = [self.device] if self.device.type == "cuda" else []
        # As if there had been no such step, and whatever the loss is.
        with torch.random.fork_rng(gpus), self.gradients.muted():
            for _ in range(self.num_micro_batches):
                self.backward(any_loss() * 0.0)
                self.step()
        self._link_moments()
        for name, parameter in trained_parameters(self.module).items():
            self._write(parameter, trained[name])
            for moment in _MOMENTS:
                if name in adam_steps:
                    self._write(parameter, moments[f"{name}/{moment}"], moment)
            self._adam_state(parameter)["step"].fill_(adam_steps.get(name, 0))

    def masters(self, names: Iterable[str]) -> dict[str, MasterShard]:
        """This rank's parts of the fp32 masters of trained parameters, as the optimizer holds them:
        they change with every step.
        """
        parameters = trained_parameters(self.module)
        return {name: self._master(parameters[name]) for name in names}

    def close(self) -> None:
        """Take DeepSpeed off the model, so that another engine can start on it, with other
        parameters trained. Nothing else can be asked of this one after it. All ranks together.
        """
        self.__exit__(None, None, None)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """As ``close``. After an exception no other rank is needed, and the model is lost."""
        self._engine = self._optimizer = self._adamw = None  # type: ignore[assignment]
        self._group_of.clear()
        self._open.__exit__(kind, error, trace)

    def rewrite(self, trained: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Replace trained parameters and their moments, between two steps. All ranks together.

        Args:
            trained: whole tensors by name, of some or all parameters.
            moments: ``NAME/exp_avg`` and ``NAME/exp_avg_sq`` of the same.
        """
        self._link_moments()
        parameters = trained_parameters(self.module)
        for name, whole in trained.items():
            parameter = parameters[name]
            self._write(parameter, whole)
            for moment in _MOMENTS:
                self._write(parameter, moments[f"{name}/{moment}"], moment)
            # DeepSpeed refreshes the working copy from its master in the next step only.
            write_whole(parameter, whole)

    def _link_moments(self) -> None:
        """At stages 1 and 2 DeepSpeed looks up where the moments of all groups are right after the
        first step of the first group, when the others have none, and never again."""
        if self.stage in (1, 2):
            optimizer = self._engine.optimizer
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _master(self, parameter: Any) -> MasterShard:
        """The private twin of ``safe_get_local_fp32_param``, which gives copies."""
        if self.stage == 0:
            flat = parameter.data.view(-1)
            size = -(-flat.numel() // dist.world_size())
            start = min(dist.rank() * size, flat.numel())
            return MasterShard(start, flat[start : start + size])
        if self.stage == 3:
            part, _ = self._engine.optimizer._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=False
            )
            start = min(dist.rank() * part.numel(), parameter.ds_numel)
            return MasterShard(start, part.data[: parameter.ds_numel - start])
        fragment = parameter._hp_mapping
        if fragment is None:  # all of it lies with other ranks
            return MasterShard(0, torch.empty(0))
        return MasterShard(fragment.lp_fragment_address.start, fragment.hp_fragment.data)

    def _adam_state(self, parameter: Any) -> dict[str, Any]:
        """What torch's AdamW keeps of the flat tensor that the parameter lies in."""
        if self.stage == 0:
            flat = parameter
        elif self.stage == 3:
            zero = self._engine.optimizer
            index, *_ = zero.grad_position[zero.get_param_id(parameter)]
            flat = zero.fp32_partitioned_groups_flat[index]
        else:
            (flat,) = self._optimizer.param_groups[self._group_of[parameter]]["params"]
        state: dict[str, Any] = self._optimizer.state[flat]
        return state

    def _read(self, parameter: nn.Parameter, moment: str | None = None) -> Tensor:
        """The fp32 master of a trained parameter, or one of its moments, whole, on the CPU."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 0:  # plain torch: the parameter is its own master
            whole = parameter if moment is None else self._optimizer.state[parameter][moment]
        elif moment is None:
            whole = safe_get_full_fp32_param(parameter)
        else:
            whole = safe_get_full_optimizer_state(parameter, moment)
        assert whole is not None, "DeepSpeed gives no master copy"
        return whole.detach().to("cpu", torch.float32, copy=True).reshape(full_shape(parameter))

    def _write(self, parameter: nn.Parameter, whole: Tensor, moment: str | None = None) -> None:
        from deepspeed import utils

        whole = whole.to(self.device, torch.float32)
        if self.stage == 0:
            target = parameter.data if moment is None else self._optimizer.state[parameter][moment]
            target.copy_(whole)
        elif self.stage == 3:
            # The full setters fail on the last rank where the size is no multiple of the world
            # size: write shards.
            shard = shard_of(whole, parameter)
            if moment is None:
                utils.safe_set_local_fp32_param(parameter, shard)
            else:
                utils.safe_set_local_optimizer_state(parameter, shard, moment)
        elif moment is None:
            utils.safe_set_full_fp32_param(parameter, whole)
        else:
            utils.safe_set_full_optimizer_state(parameter, whole, moment)
