"""What a step is measured on: a T5 of a published shape with random weights, and random rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalepet import backbones
from scalepet.backbones import Site

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "xl": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "xxl": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    "ul2": {"d_model": 4096, "d_kv": 256, "d_ff": 16384, "num_layers": 32, "num_heads": 16},
}
"""T5 v1.1 small to XXL and UL2, as their config.json on the hub have them; tiny is for tests."""

_VOCABULARY = 32128


@dataclass(frozen=True)
class Work:
    """A frozen model and the rows of one step.

    Attributes:
        num_targets: tokens that the loss is a mean over.
    """

    model: nn.Module
    config: Any
    sites: tuple[Site, ...]
    batch: Mapping[str, Tensor]
    num_targets: int

    @property
    def num_tokens(self) -> int:
        """Of inputs and targets, in one step."""
        return self.batch["input_ids"].numel() + self.batch["labels"].numel()

    def loss(self, model: nn.Module) -> Tensor:
        """Mean cross-entropy over the targets, of ``model`` or what PEFT made of it."""
        family = backbones.family_of(self.config)
        total: Tensor = family.loss_sum(model, self.batch, config=self.config)
        return total / self.num_targets

    def with_rows(self, rows: int, source_length: int, target_length: int) -> Work:
        """The same model with other random rows, without padding."""
        device = next(iter(self.batch.values())).device
        batch = _rows(self.config, rows, source_length, target_length, device)
        return dataclasses.replace(self, batch=batch, num_targets=batch["labels"].numel())

    def with_odd_rows(self) -> Work:
        """The same model with three rows of 11 and 5 tokens."""
        cut = {
            name: tensor[:3, : 5 if name == "labels" else 11] for name, tensor in self.batch.items()
        }
        return dataclasses.replace(self, batch=cut, num_targets=cut["labels"].numel())


def make_work(
    shape: str,
    *,
    rows: int,
    source_length: int,
    target_length: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Work:
    """A model of that shape, drawn on the device itself, and rows without padding."""
    config = backbones.t5_config(
        vocab_size=1000 if shape == "tiny" else _VOCABULARY, **SHAPES[shape]
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = backbones.family_of(config).model_class(config)._from_config(config, dtype=dtype)
    model.requires_grad_(False)
    batch = _rows(config, rows, source_length, target_length, device)
    sites = backbones.sketch_sites(config)
    return Work(model.train(), config, sites, batch, batch["labels"].numel())


def _rows(
    config: Any, rows: int, source_length: int, target_length: int, device: torch.device
) -> dict[str, Tensor]:
    source = torch.randint(2, config.vocab_size, (rows, source_length), device=device)
    target = torch.randint(2, config.vocab_size, (rows, target_length), device=device)
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "labels": target}
