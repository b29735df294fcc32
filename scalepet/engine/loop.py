"""One optimizer step; the recipe decides what happens between two of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scalepet import dist
from scalepet.data import Batch, Step
from scalepet.engine.sharded import Engine

LossSum = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Skipped:
    """Why a step was left out. All that is trained, and its moments, are as before it.

    Attributes:
        what: is not finite: "the loss", or "the gradient of" and the tensor where it began.
        ranks: whose rows it came from; none where only the sum over ranks is not finite.
        batches: this rank's micro-batches.
        losses: of these, each summed over its targets.
        is_overflow: the loss is finite, and fp16 could not hold a gradient under DeepSpeed's loss
            scale, which is halved: it comes with fp16, and the next steps may well be fine.
    """

    what: str
    ranks: tuple[int, ...]
    batches: tuple[Batch, ...] = field(repr=False)
    losses: tuple[float, ...]
    is_overflow: bool = False


@dataclass(frozen=True)
class StepReport:
    """One optimizer step as it was.

    Attributes:
        num_steps: how many optimizer steps are done now.
        epoch: pass over the rows, from 0.
        loss: mean cross-entropy over the targets of the global batch, in nats, before the step; the
            same on every rank. Not finite where that is why the step was left out.
        learning_rate: of the tuned parameters in this step.
        gradient_norm: of the whole gradient before clipping; None where DeepSpeed does not tell, or
            it is not finite.
        num_tokens: source and target tokens of the global batch, without padding; 0 of pictures.
        seconds: wall-clock time of the step on this rank.
        num_pictures: of the global batch; 0 of texts.
        is_stop_asked: whether any rank was asked to stop by the end of the step; the same on every
            rank.
        skipped: None where the step was made.
    """

    num_steps: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_norm: float | None
    num_tokens: int
    seconds: float
    num_pictures: int = 0
    is_stop_asked: bool = False
    skipped: Skipped | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def speed(self) -> dict[str, float]:
        """What goes through a step in a second: pictures where rows are such, else tokens."""
        if self.num_pictures:
            return {"pictures_per_second": self.num_pictures / self.seconds}
        return {"tokens_per_second": self.tokens_per_second}


def train_step(
    engine: Engine,
    step: Step,
    *,
    loss_sum: LossSum,
    learning_rate_factor: float,
    is_stop_asked: Callable[[], bool] = lambda: False,
) -> StepReport:
    """Train on one step, or leave it out where its loss or a gradient is not finite on any rank.
    All ranks together.

    The loss is a mean over the targets of the GLOBAL batch, however it is cut into ranks and
    micro-batches, so losses and gradients are the same at any world size (up to dropout, whose
    draws are a rank's own).

    Args:
        loss_sum: ``(model, tensors) -> ()`` loss summed over the targets of a micro-batch.
        learning_rate_factor: in [0, 1], what the peak rates are multiplied with.
        is_stop_asked: of this rank. Looked at before the optimizer moves, so that a request that
            comes during the step counts; the answer goes through all ranks with the loss.
    """
    started = time.perf_counter()
    engine.in_training.train()
    engine.set_learning_rate_factor(learning_rate_factor)
    losses = _forward_and_backward(engine, step, loss_sum)
    num_tokens, num_pictures = (
        losses.new_tensor(sum(getattr(batch, name) for batch in step.micro_batches))
        for name in ("num_tokens", "num_pictures")
    )
    stop_asked = losses.new_tensor(is_stop_asked())
    is_bad = (~engine.gradients.are_finite()).to(losses)
    # One collective says all, before the optimizer moves anything.
    mean_loss, total_tokens, total_pictures, num_asked, num_bad = dist.sum_over_ranks(
        torch.stack([losses.sum() / step.num_targets, num_tokens, num_pictures, stop_asked, is_bad])
    ).tolist()
    skipped = None
    if num_bad or not math.isfinite(mean_loss):
        skipped = _skipped(engine, step, losses)
        engine.skip()
    else:
        engine.step()
        if not engine.has_moved:
            skipped = _skipped(engine, step, losses)
    return StepReport(
        num_steps=step.index + 1,
        epoch=step.epoch,
        loss=mean_loss,
        learning_rate=engine.learning_rate,
        gradient_norm=None if skipped else engine.gradient_norm(),
        num_tokens=round(total_tokens),
        seconds=time.perf_counter() - started,
        num_pictures=round(total_pictures),
        is_stop_asked=num_asked > 0,
        skipped=skipped,
    )


def _forward_and_backward(engine: Engine, step: Step, loss_sum: LossSum) -> Tensor:
    """All of a step but the optimizer: the summed loss of each of this rank's micro-batches, in
    fp64.
    """
    # DeepSpeed divides by both; the loss has its own divisor.
    scale = engine.num_micro_batches * dist.world_size() / step.num_targets
    losses = []
    for index, batch in enumerate(step.micro_batches):
        if index > 0:
            engine.step()
        loss = loss_sum(engine.in_training, on_device(batch, engine.device))
        engine.backward(loss * scale)
        losses.append(loss.detach().double())
    return torch.stack(losses)


def _skipped(engine: Engine, step: Step, losses: Tensor) -> Skipped:
    """What this step is left out for. All ranks together."""
    own = (not losses.isfinite().all(), engine.gradients.first_bad())
    found = dist.all_gather_objects(own)
    has_bad_loss = any(is_bad for is_bad, _ in found)
    name = next((name for _, name in found if name is not None), None)
    of_what = "summed over all ranks" if name is None else f"of {name}"
    return Skipped(
        what="the loss" if has_bad_loss else f"the gradient {of_what}",
        ranks=tuple(rank for rank, one in enumerate(found) if one != (False, None)),
        batches=tuple(step.micro_batches),
        losses=tuple(losses.tolist()),
        is_overflow=engine.scales_loss and not has_bad_loss,
    )


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
