"""Prompt tuning: learnt positions that the encoder reads with the input.

Source: "The Power of Scale for Parameter-Efficient Prompt Tuning" (arXiv 2104.08691); for ViT
"Visual Prompt Tuning" (arXiv 2203.12119).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scalepet.backbones import Site, family_of
from scalepet.pet.calibration import add_scale, scaled
from scalepet.pet.method import Count, Method, Positive
from scalepet.pet.start import add_parameter, normal


class PromptRows(nn.Module):
    """``rows`` (length, width), read by every example of a batch; calibrated, times a scale."""

    rows: Tensor

    def __init__(self, start: Tensor, *, like: Tensor, calibrated: bool) -> None:
        super().__init__()
        add_parameter(self, "rows", start, like=like)
        if calibrated:
            add_scale(self, "rows", like=like)

    def forward(self, batch_size: int) -> Tensor:
        return scaled(self, "rows").expand(batch_size, -1, -1)


@dataclass(frozen=True)
class PromptTuning(Method):
    """``prompt.rows`` (length, width) on the model."""

    length: int
    width: int
    options: Mapping[str, Any]

    starts_as_backbone = False
    cannot_merge = "a plain model has no place for a prompt"

    @property
    def num_parameters(self) -> int:
        return self.length * self.width + (1 if self.options["calibrated"] else 0)

    @property
    def num_positions(self) -> int:
        return self.length

    def attach(self, model: Any) -> None:
        start = normal(
            "prompt",
            (self.length, self.width),
            std=self.options["std"],
            seed=self.options["seed"],
        )
        model.prompt = PromptRows(
            start, like=next(model.parameters()), calibrated=self.options["calibrated"]
        )
        read_prompt(model, model.prompt, self.length)

    def record(self) -> dict[str, Any]:
        return {"options": dict(self.options)}


def read_prompt(model: Any, prompt: nn.Module, length: int) -> None:
    """Let ``model`` read what ``prompt`` gives for a batch size: (batch, length, width)."""
    family_of(model.config).read_prompt(model, prompt, length)


def input_width(sites: Sequence[Site]) -> int:
    """The width of what the first block reads: the columns of its attention's first projection."""
    return next(site.shape[1] for site in sites if site.part == "q")


def plan_prompt(
    sites: Sequence[Site],
    *,
    length: Count = 100,
    std: Positive = 0.1,
    calibrated: bool = False,
    seed: int = 0,
) -> PromptTuning:
    """Size the prompt.

    Args:
        sites: the tensors of the backbone.
        length: positions; the encoder of a T5 reads them in front of the text, a BERT or a ViT
            behind the class token.
        std: standard deviation of the start.
        calibrated: a learnt scale for all of it.
        seed: of the start.
    """
    options = {"length": length, "std": std, "calibrated": calibrated, "seed": seed}
    return PromptTuning(length, input_width(sites), options)
