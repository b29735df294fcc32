"""Learning: a head that grows by one linear map for each experience, and a loss that knows only the
classes of the experience at hand.

Source: "A Unified Continual Learning Framework with General Parameter-Efficient Tuning"
(arXiv 2303.10070), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalepet.backbones import classify, score_label_words
from scalepet.data import IGNORED
from scalepet.pet import normal

_STD = 0.001
"""Of the start of a map's weight: no class is ahead when it arrives."""


class GrowingHead(nn.Module):
    """(rows, width) -> (rows, classes so far), one linear map behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList()

    def grow(self, num_classes: int, *, width: int, like: Tensor, seed: int) -> None:
        """Add a map for classes that arrive; its start depends on its number and the seed alone.

        Args:
            like: a tensor of the type and on the device that the map is to have.
        """
        start = normal(f"head {len(self.maps)}", (num_classes, width), std=_STD, seed=seed)
        # Without a start of its own, which would cost the generator of dropout some numbers.
        new = nn.utils.skip_init(
            nn.Linear, width, num_classes, device=like.device, dtype=like.dtype
        )
        with torch.no_grad():
            new.weight.copy_(start)
            new.bias.zero_()
        self.maps.append(new.requires_grad_(False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([one(x) for one in self.maps], dim=-1)


@dataclass(frozen=True)
class Phase:
    """Steps of one experience in which the same parameters are trained.

    Attributes:
        start: the first optimizer step, counted from the start of the experience.
        stop: one behind the last.
        is_frozen: the method rests, and only the head learns.
    """

    start: int
    stop: int
    is_frozen: bool


def phases_of(
    experience: int, *, num_steps: int, freeze_epochs: float, steps_per_epoch: int
) -> list[Phase]:
    """The phases of an experience: in every one but the first the method rests at first.

    Args:
        experience: its number, from 0.
        num_steps: of the experience.
    """
    thaw = round(freeze_epochs * steps_per_epoch) if experience else 0
    assert thaw < num_steps, "the config check refuses a method that never thaws"
    frozen = [Phase(0, thaw, is_frozen=True)] if thaw else []
    return [*frozen, Phase(thaw, num_steps, is_frozen=False)]


def loss_over_classes(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    classes: Sequence[int],
    label_ids: Sequence[npt.ArrayLike] | None,
    config: Any,
) -> Tensor:
    """Cross-entropy among ``classes`` alone, summed over the targets, in nats, fp32.

    Old classes do not compete: without their examples they could only lose (section 3.2).

    Args:
        tensors: "labels" count within ``classes``.
        classes: columns of the head.
        label_ids: tokens of the label words of ``classes``, for a model without a head.
        config: of the model, which may be DeepSpeed's engine.
    """
    if label_ids is None:
        scores = classify(model, tensors)[:, list(classes)]
    else:
        scores = score_label_words(model, tensors, label_ids, config=config)
    return F.cross_entropy(scores.float(), tensors["labels"], ignore_index=IGNORED, reduction="sum")
