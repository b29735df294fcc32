from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalepet.backbones import Backbone, load_model, read_model_config
from scalepet.lae import GrowingHead, Phase, loss_over_classes, phases_of


def grown(*sizes: int, seed: int = 0) -> GrowingHead:
    head = GrowingHead()
    for size in sizes:
        head.grow(size, width=6, like=torch.zeros(1), seed=seed)
    return head


def test_a_head_grows_by_columns_and_keeps_those_it_has() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    before, after = grown(2, 3)(x), grown(2, 3, 2)(x)
    assert after.shape == (4, 7)
    assert torch.equal(after[:, :5], before)


def test_a_map_starts_small_without_bias_and_costs_the_generator_nothing() -> None:
    torch.manual_seed(3)
    head = grown(4000)
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))
    weight: Any = head.maps[0].weight
    assert weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not head.maps[0].bias.any()  # type: ignore[union-attr, operator]
    assert not torch.equal(weight, grown(4000, seed=1).maps[0].weight)
    first, second = (one.weight for one in grown(5, 5).maps)
    assert not torch.equal(first, second)  # type: ignore[arg-type]


def test_phases() -> None:
    options = {"num_steps": 50, "freeze_epochs": 3, "steps_per_epoch": 10}
    assert phases_of(0, **options) == [Phase(0, 50, is_frozen=False)]
    assert phases_of(1, **options) == [
        Phase(0, 30, is_frozen=True),
        Phase(30, 50, is_frozen=False),
    ]
    assert phases_of(1, **{**options, "freeze_epochs": 0}) == [Phase(0, 50, is_frozen=False)]


class Logits(nn.Module):
    """A model that says what it is told."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, **_: Any) -> Any:
        return SimpleNamespace(logits=self.logits)


def test_only_the_classes_of_the_experience_compete() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    model = Logits(logits)
    labels = torch.tensor([1, -100, 0])  # within the classes; one row is a filler
    loss = loss_over_classes(model, {"labels": labels}, classes=(4, 2), label_ids=None, config=None)
    rows = [F.cross_entropy(logits[i, [4, 2]], labels[i]) for i in (0, 2)]
    torch.testing.assert_close(loss, sum(rows))
    loss.backward()
    assert model.logits.grad is not None
    assert not model.logits.grad[:, [0, 1, 3]].any()
    assert not model.logits.grad[1].any()


def test_label_words_compete_by_their_probability(tiny_backbones: Path) -> None:
    """Each word by itself, through the model's own loss; gradients as well."""
    backbone = Backbone(str(tiny_backbones / "t5-gated"), dropout=0.0)
    config = read_model_config(backbone)
    model: Any = load_model(backbone, config, dtype=torch.float32).model.requires_grad_(True)
    ids = torch.randint(5, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    tensors = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([1, 0, -100]),
    }
    words = [[7, 1], [9, 12, 4, 1]]
    loss = loss_over_classes(model, tensors, classes=(), label_ids=words, config=config)
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    scores = []
    for word in words:
        labels = torch.tensor(word).repeat(3, 1)
        logits = model(input_ids=ids, labels=labels).logits.log_softmax(-1)
        scores.append(logits.gather(-1, labels[..., None]).sum((1, 2)))
    rows = torch.stack(scores, dim=1).log_softmax(-1)
    expected = -(rows[0, 1] + rows[1, 0])
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, (one, other) in zip(
        dict(model.named_parameters()),
        zip(found, (p.grad for p in model.parameters()), strict=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)
