"""One optimizer step; the recipe decides what happens between two of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scalepet import dist
from scalepet.data import Batch, Step
from scalepet.engine.sharded import Engine

LossSum = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class StepReport:
    """One optimizer step as it was.

    Attributes:
        num_steps: how many optimizer steps are done now.
        epoch: pass over the rows, from 0.
        loss: mean cross-entropy over the targets of the global batch, in nats, before the step; the
            same on every rank.
        learning_rate: of the tuned parameters in this step.
        gradient_norm: of the whole gradient before clipping; None where DeepSpeed does not tell.
        num_tokens: source and target tokens of the global batch, without padding; 0 of pictures.
        seconds: wall-clock time of the step on this rank.
        num_pictures: of the global batch; 0 of texts.
        is_stop_asked: whether any rank was asked to stop by the end of the step; the same on every
            rank.
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
    """Train on one step. All ranks together.

    The loss is a mean over the targets of the GLOBAL batch, however it is cut into ranks and
    micro-batches, so losses and gradients are the same at any world size (up to dropout, whose
    draws are a rank's own).

    Args:
        loss_sum: ``(model, tensors) -> ()`` loss summed over the targets of a micro-batch.
        learning_rate_factor: in [0, 1], what the peak rates are multiplied with.
        is_stop_asked: of this rank. Looked at once the work is done, so that a request that comes
            during the step counts; the answer goes through all ranks with the loss.
    """
    started = time.perf_counter()
    engine.in_training.train()
    engine.set_learning_rate_factor(learning_rate_factor)
    loss = _forward_and_backward(engine, step, loss_sum)
    num_tokens, num_pictures = (
        loss.new_tensor(sum(getattr(batch, name) for batch in step.micro_batches))
        for name in ("num_tokens", "num_pictures")
    )
    stop_asked = loss.new_tensor(is_stop_asked())
    mean_loss, total_tokens, total_pictures, num_asked = dist.sum_over_ranks(
        torch.stack([loss / step.num_targets, num_tokens, num_pictures, stop_asked])
    ).tolist()
    return StepReport(
        num_steps=step.index + 1,
        epoch=step.epoch,
        loss=mean_loss,
        learning_rate=engine.learning_rate,
        gradient_norm=engine.gradient_norm(),
        num_tokens=round(total_tokens),
        seconds=time.perf_counter() - started,
        num_pictures=round(total_pictures),
        is_stop_asked=num_asked > 0,
    )


def _forward_and_backward(engine: Engine, step: Step, loss_sum: LossSum) -> Tensor:
    """This rank's micro-batches and the optimizer's step: the summed loss in fp64."""
    # DeepSpeed divides by both; the loss has its own divisor.
    scale = engine.num_micro_batches * dist.world_size() / step.num_targets
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for batch in step.micro_batches:
        loss = loss_sum(engine.in_training, on_device(batch, engine.device))
        engine.backward(loss * scale)
        engine.step()
        total += loss.detach()
    return total


def on_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.tensors.items()}
