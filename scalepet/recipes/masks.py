"""Masks that are not known from the config alone: chosen by a score once the weights are there, or
moving while they are trained. Their positions are saved beside what is trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from scalepet import build, dist, engine, pet
from scalepet.build import Plan
from scalepet.data import Step, TrainLoader
from scalepet.engine import Engine, LossSum
from scalepet.errors import some_ranks
from scalepet.exact import exactly
from scalepet.pet import Apet, GradientShards, Method

NUM_SCORED_STEPS = 8
"""Batches whose gradients are summed."""

_FP16_SCALES = (2.0**16, 2.0**12, 2.0**8, 2.0**4, 1.0)
"""What a loss in fp16 is multiplied with, so that small gradients do not become zeros: the first at
which no gradient is too large. Powers of two, by which sums are divided again without an error.
"""


def chosen(
    method: Method,
    model: nn.Module,
    *,
    ds_config: Mapping[str, Any],
    loader: TrainLoader,
    loss_sum: LossSum,
) -> Method:
    """The method with its mask, where it is one that a score chooses. All ranks together.

    Args:
        model: the bare backbone.
        loader: the first ``NUM_SCORED_STEPS`` batches of the run are what is scored on.
    """
    apet = pet.apet_of(method)
    if apet is None or apet.mask is not None:
        return method
    assert apet.score is not None, apet.select
    gradients = None
    if apet.score != "magnitude":
        device = engine.pick_device()
        with engine.untrained(model, ds_config, device):
            gradients = _gradients(model, apet.shapes, loader, loss_sum, device)
    scores = pet.score_shards(
        apet.score,
        apet.shapes,
        whole=lambda name: engine.read_whole(model.get_parameter(name)),
        gradients=gradients,
    )
    return pet.with_apet(method, apet.choose(scores))


def _gradients(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    loader: TrainLoader,
    loss_sum: LossSum,
    device: torch.device,
) -> GradientShards:
    """Of the mean losses of the first batches, summed over them and over all ranks."""
    is_fp16 = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    model.eval()
    for scale in _FP16_SCALES if is_fp16 else (1.0,):
        with pet.watching(model, shapes) as found:
            for index in range(NUM_SCORED_STEPS):
                _add_gradients(model, loader.step(index), loss_sum, device, scale=scale)
        found.divide(scale)
        if found.are_finite():
            break
    return found


def _add_gradients(
    model: nn.Module, step: Step, loss_sum: LossSum, device: torch.device, *, scale: float
) -> None:
    for batch in step.micro_batches:
        loss = loss_sum(model, engine.on_device(batch, device))
        (loss / step.num_targets * scale).backward()


@dataclass
class MaskMover:
    """Moves the entries of a mask from time to time, see ``pet.move_entries``; of all other methods
    nothing ever moves.

    Attributes:
        method: as it is now.
        num_steps: of the whole run.
    """

    method: Method
    runner: Engine
    num_steps: int
    _found: GradientShards | None = field(default=None, init=False)

    @contextlib.contextmanager
    def watching(self, num_steps: int) -> Iterator[None]:
        """Around the step that makes ``num_steps`` done: where a move is due after it, the
        gradients of the whole masked tensors are looked at.
        """
        apet = self._due(num_steps)
        if apet is None:
            yield
            return
        trained = engine.trained_parameters(self.runner.module)
        values: dict[str, Tensor] = {name: trained[own] for name, own in apet.values.items()}
        shapes = {name: apet.shapes[name] for name in values}
        with pet.collecting(values, shapes) as self._found:
            yield

    def move(self, num_steps: int) -> None:
        """Move the entries, where a move is due. All ranks together."""
        apet, found = self._due(num_steps), self._found
        if apet is None:
            return
        assert found is not None and apet.mask is not None and apet.moves is not None
        part = exactly(apet.moves.share) * (1 - Fraction(num_steps, self.num_steps))
        trained, moments = self.runner.read_trained(), self.runner.read_optimizer()
        new_trained, new_moments, positions = {}, {}, {}
        for name, own in apet.values.items():
            move = pet.move_entries(
                apet.mask.positions[name],
                trained[own],
                found.sums[name],
                start=found.slices[name].start,
                num_moved=pet.largest_move(apet, name, part),
            )
            positions[name] = move.positions
            new_trained[own] = move.carried(trained[own])
            for moment in (key for key in moments if key.rpartition("/")[0] == own):
                new_moments[moment] = move.carried(moments[moment])
        self._found = None
        self.runner.rewrite(new_trained, new_moments)
        moved = apet.moved_to(positions)
        moved.place(self.runner.module)
        self.method = pet.with_apet(self.method, moved)

    def put_back(self, saved: Mapping[str, Tensor]) -> None:
        """Go back to the numbers, and to the mask where it moves, of an adapter of this run; the
        optimizer stays behind, so nothing is trained after it. All ranks together.
        """
        fixed = {name: tensor for name, tensor in saved.items() if name.endswith(pet.POSITIONS)}
        self.method = with_saved_positions(self.method, fixed)
        apet = pet.apet_of(self.method)
        if apet is not None and apet.moves is not None:
            apet.place(self.runner.module)
        trained = {name: tensor for name, tensor in saved.items() if name not in fixed}
        engine.load_trained(self.runner.module, trained)

    def _due(self, num_steps: int) -> Apet | None:
        apet = pet.apet_of(self.method)
        if apet is None or apet.moves is None or num_steps >= self.num_steps:
            return None
        return apet if num_steps % apet.moves.every == 0 else None


def kernel_warnings(plan: Plan) -> list[str]:
    """One for each reason why the backward of a masked layer is slower here than it could be. All
    ranks together, before the first step.
    """
    if pet.apet_of(plan.method) is None:
        return []
    why = pet.why_no_kernel(engine.pick_device(), build.DTYPES[plan.config.precision])
    ranks_of: dict[str, list[int]] = {}
    for rank, reason in enumerate(dist.all_gather_objects(why)):
        if reason is not None:
            ranks_of.setdefault(reason, []).append(rank)
    return [
        f"Triton's kernel does not run on {some_ranks(ranks)} ({reason}); gradients of masked"
        " weights are gathered there, which takes longer"
        for reason, ranks in ranks_of.items()
    ]


def saved_positions(method: Method) -> dict[str, Tensor]:
    """What has to be saved of the method's mask besides what is trained; often nothing."""
    apet = pet.apet_of(method)
    return {} if apet is None else apet.saved_positions()


def with_saved_positions(method: Method, saved: Mapping[str, Tensor]) -> Method:
    """The method with the mask that ``saved_positions`` told of.

    Raises:
        CheckpointError: they do not fit the backbone.
    """
    apet = pet.apet_of(method)
    return method if apet is None else pet.with_apet(method, apet.with_positions(saved))
