"""The learner: a backbone on which one experience after the other is learnt, phase by phase.

Between two phases all that is learnt lies whole and in fp32 in host memory; within one it is where
DeepSpeed and the accumulation hold it, each rank with its part.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scalepet import build, dist, engine
from scalepet.backbones import Loaded
from scalepet.engine import Engine, RunState
from scalepet.errors import ConfigError
from scalepet.lae import Accumulation, GrowingHead, Phase, equal_shards, experts
from scalepet.pet import Method
from scalepet.recipes.masks import chosen, saved_positions, with_saved_positions
from scalepet.recipes.prepare_stream import PreparedStream

Wholes = dict[str, Tensor]
"""fp32 tensors on the CPU, by name."""

_HEAD = "classifier"
"""The module of BERT and ViT that makes logits of the pooled state."""


@dataclass(frozen=True)
class Carried:
    """What an optimizer goes on from: a saved state, or the end of the frozen epochs."""

    trained: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    adam_steps: Mapping[str, int]


@dataclass
class Learner:
    """Knows what is trained when, and where the numbers are.

    Attributes:
        shapes: of what the method trains, by name.
        online: what the method trains, between two phases.
        offline: its copies, between two phases; none before the second experience.
        spans: (first class, one behind the last) of each map of the head.
    """

    prepared: PreparedStream
    loaded: Loaded
    method: Method
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    online: Wholes = field(default_factory=dict)
    offline: list[Wholes] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    _following: Accumulation | None = field(default=None, init=False)

    @property
    def model(self) -> nn.Module:
        return self.loaded.model

    def meet(self, index: int) -> None:
        """An experience comes: the head grows, and from the second one on there are copies."""
        self.grow(index)
        self.copy(index)

    def grow(self, index: int) -> None:
        """Give the classes that come with an experience a map of the head."""
        start, stop = self.prepared.num_seen(index - 1), self.prepared.num_seen(index)
        if self.prepared.plan.family.head and stop > start:
            _grow(self.loaded, stop - start, seed=self.prepared.config.seed)
            self.spans.append((start, stop))

    def copy(self, index: int) -> None:
        """Offline copies start as the online numbers, when the second experience starts."""
        if index == 1 and not self.offline:
            copies = self.prepared.config.lae.offline
            self.offline = [
                {name: whole.clone() for name, whole in self.online.items()} for _ in copies
            ]

    def heads_of(self, index: int) -> list[str]:
        """The parameters of the maps that have classes of an experience."""
        classes = self.prepared.lessons[index].classes
        return [
            f"{_HEAD}.maps.{number}.{own}"
            for number, (start, stop) in enumerate(self.spans)
            if any(start <= place < stop for place in classes)
            for own in ("weight", "bias")
        ]

    def counts(self) -> dict[str, int]:
        """Numbers of the method, of the head once all classes have come, and of the backbone."""
        sizes = {
            name: math.prod(engine.full_shape(parameter))
            for name, parameter in self.model.named_parameters()
        }
        masked = self.method.num_parameters
        head = sum(size for name, size in sizes.items() if name.startswith(_HEAD))
        backbone = sum(size for name, size in sizes.items() if name not in self.shapes) - head
        if self.spans:
            num_classes = len(self.prepared.stream.classes)
            head = num_classes * head // self.spans[-1][1]  # every class has as many
        return {"trained": masked + head, "masked": masked, "head": head, "backbone": backbone}

    def begin(self, index: int, phase: Phase, carried: Carried | None) -> Engine:
        """Start DeepSpeed on what a phase trains; a fresh optimizer but for what is carried."""
        heads = self.heads_of(index)
        names = heads if phase.is_frozen else [*self.shapes, *heads]
        self.model.requires_grad_(False)
        for name in names:
            self.model.get_parameter(name).requires_grad_(True)
        known = {**self.online, **({} if carried is None else carried.trained)}
        numbers = {name: known[name] for name in names if name in known}
        runner = Engine(
            self.model,
            head_names=heads,
            optimizer=build.optimizer_of(self.prepared.plan.config),
            ds_config=self.prepared.ds_config,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(runner)
            if carried is None:
                runner.write_masters(numbers)
            else:
                self._restore(runner, index, numbers, carried)
            stack.pop_all()
        return runner

    def _restore(
        self, runner: Engine, index: int, numbers: Mapping[str, Tensor], carried: Carried
    ) -> None:
        lesson = self.prepared.lessons[index]
        batch = engine.on_device(lesson.loader.step(0).micro_batches[0], runner.device)
        loss_sum = self.prepared.loss_sum(index)
        runner.restore(
            numbers,
            carried.moments,
            adam_steps=carried.adam_steps,
            any_loss=lambda: loss_sum(runner.in_training, batch),
        )

    def accumulate(self, runner: Engine, index: int, phase: Phase) -> Accumulation:
        """The offline copies of a phase, which follow the optimizer or, while the method rests,
        what it has learnt so far.
        """
        copies = Accumulation(
            equal_shards(self.online) if phase.is_frozen else runner.masters(self.shapes),
            self.offline,
            shapes=self.shapes,
            alphas=self.prepared.alphas(index) if self.offline else [],
        )
        runner.before_each_step(copies.wait)
        self._following, self.online, self.offline = copies, {}, []
        return copies

    def end(self, copies: Accumulation) -> None:
        """Take in what a phase has changed. All ranks together."""
        self.online, self.offline = copies.read_online(), copies.read()
        copies.close()
        self._following = None

    @property
    def experts(self) -> dict[str, Wholes]:
        """The numbers of each expert, by its name, between two phases."""
        numbered = ["offline", *(f"offline {n}" for n in range(2, len(self.offline) + 1))]
        return {"online": self.online, **dict(zip(numbered, self.offline, strict=False))}

    def as_experts(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """The model computes for the online expert and the offline ones at once."""
        if not self.offline:
            return contextlib.nullcontext()
        return experts(self.model, list(self.experts.values()), device=device)

    def heads(self) -> Wholes:
        """All maps of the head, in fp32. All ranks together."""
        names = [name for name, _ in self.model.named_parameters() if name.startswith(_HEAD)]
        return {
            name: engine.read_whole(self.model.get_parameter(name)).float().cpu() for name in names
        }

    def fixed(self, copies: Sequence[Mapping[str, Tensor]], trained: Iterable[str]) -> Wholes:
        """What a saved state needs besides what is trained at that moment. All ranks together."""
        trained = set(trained)
        online = self.online if self._following is None else self._following.read_online()
        resting = {name: whole for name, whole in online.items() if name not in trained}
        heads = {name: whole for name, whole in self.heads().items() if name not in trained}
        return {
            **{f"online/{name}": whole for name, whole in resting.items()},
            **{f"heads/{name}": whole for name, whole in heads.items()},
            **{
                f"offline.{number}/{name}": whole
                for number, copy in enumerate(copies)
                for name, whole in copy.items()
            },
            **{f"positions/{name}": one for name, one in saved_positions(self.method).items()},
        }

    def experts_to_save(self) -> dict[str, Wholes]:
        """What the adapter of each expert holds, by its name. All ranks together."""
        head = _joined_head(self.heads(), len(self.spans))
        return {name: {**whole, **head} for name, whole in self.experts.items()}


def start_learner(prepared: PreparedStream, state: RunState | None, *, index: int) -> Learner:
    """The backbone with the method on it, as it was when the state was saved.

    Args:
        index: the experience at which the stream starts or goes on.
    """
    plan = prepared.plan
    loaded = build.load_backbone(plan, prepared.ds_config)
    _check_head(prepared, loaded)
    learner = Learner(prepared, Loaded(loaded.model, (), loaded.how), plan.method)
    if plan.family.head:
        setattr(learner.model, _HEAD, GrowingHead())
    for met in range(index + 1):
        learner.grow(met)
    if state is None:
        learner.method = chosen(
            plan.method,
            learner.model,
            ds_config=prepared.ds_config,
            loader=prepared.lessons[0].loader,
            loss_sum=prepared.loss_sum(0),
        )
    else:
        positions = _under("positions", state.fixed)
        learner.method = dist.together(lambda: with_saved_positions(plan.method, positions))
    build.attach(learner.method, learner.loaded)
    tuned = engine.trained_parameters(learner.model)
    learner.shapes = {name: engine.full_shape(parameter) for name, parameter in tuned.items()}
    if state is None:
        learner.online = {name: _read(learner.model, name) for name in tuned}
    else:
        _bring_back(learner, state)
    learner.copy(index)
    return learner


def _bring_back(learner: Learner, state: RunState) -> None:
    resting = _under("online", state.fixed)
    learner.online = {
        name: resting[name] if name in resting else state.trained[name] for name in learner.shapes
    }
    heads = {name: whole for name, whole in state.trained.items() if name not in learner.online}
    for name, whole in {**_under("heads", state.fixed), **heads, **learner.online}.items():
        engine.write_whole(learner.model.get_parameter(name), whole)
    numbers = range(len(learner.prepared.config.lae.offline))
    copies = [_under(f"offline.{number}", state.fixed) for number in numbers]
    learner.offline = [copy for copy in copies if copy]


def _grow(loaded: Loaded, num_classes: int, *, seed: int) -> None:
    model: Any = loaded.model
    like = next(model.parameters())
    head: GrowingHead = model.get_submodule(_HEAD)
    head.grow(num_classes, width=model.config.hidden_size, like=like, seed=seed)


def _check_head(prepared: PreparedStream, loaded: Loaded) -> None:
    """Raises ConfigError where more would start at random than the head that grows."""
    lacking = [name for name in loaded.head_names if not name.startswith(_HEAD)]
    if lacking:
        raise ConfigError(
            f"backbone.path: {prepared.config.backbone.path!r} lacks {', '.join(lacking)}, which"
            " every experience would train; allowed: a backbone that has them"
        )


def _joined_head(heads: Wholes, num_maps: int) -> Wholes:
    """The maps of the head as the one that a plain model has."""
    if not num_maps:
        return {}
    return {
        f"{_HEAD}.{own}": torch.cat([heads[f"{_HEAD}.maps.{n}.{own}"] for n in range(num_maps)])
        for own in ("weight", "bias")
    }


def _read(model: nn.Module, name: str) -> Tensor:
    return engine.read_whole(model.get_parameter(name)).float().cpu()


def _under(folder: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors with ``folder/`` in front of their names, without it."""
    return {
        name.removeprefix(f"{folder}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{folder}/")
    }
