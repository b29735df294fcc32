"""Scores of masks in 16 bits are those of 32, as far as what is chosen by them goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.test_loop import make_loader
from torch import Tensor

from scalepet import backbones
from scalepet.backbones import Backbone
from scalepet.recipes import masks

SHARE = 0.1
"""Of all entries, which a budget takes."""


@pytest.fixture(scope="module")
def score(tiny_backbones: Path) -> Callable[..., Tensor]:
    """``score(dtype, weight)``: gradients of all matrices of a T5 whose loss is so much larger."""
    backbone = Backbone(str(tiny_backbones / "t5"), dropout=0.0)
    config = backbones.read_model_config(backbone)
    sites = [site for site in backbones.sketch_sites(config) if len(site.shape) == 2]
    loss_sum: Any = partial(backbones.family_of(config).loss_sum, config=config)

    def of(dtype: torch.dtype, weight: float) -> Tensor:
        model = backbones.load_model(backbone, config, dtype=dtype).model
        found = masks._gradients(
            model,
            {site.name: site.shape for site in sites},
            make_loader("t5"),
            lambda model, tensors: weight * loss_sum(model, tensors),
            torch.device("cpu"),
        )
        return torch.cat([found.sums[site.name].abs() for site in sites])

    return of


def overlap(one: Tensor, other: Tensor) -> float:
    """Of the largest entries of both."""
    num = round(SHARE * len(one))
    chosen = [set(scores.topk(num).indices.tolist()) for scores in (one, other)]
    return len(chosen[0] & chosen[1]) / num


def num_lost(scores: Tensor, exact: Tensor) -> int:
    return int(((scores == 0) & (exact != 0)).sum())


WEIGHTS = [3e-5, 1.0, 1e4]
"""The last one is too much for the largest scale, at which gradients would be infinite."""


@pytest.mark.parametrize("weight", WEIGHTS)
def test_scores_in_fp16_choose_as_in_fp32(score: Callable[..., Tensor], weight: float) -> None:
    exact, found = score(torch.float32, weight), score(torch.float16, weight)
    assert found.isfinite().all()
    assert overlap(found, exact) > 0.99  # seen: .9987
    assert num_lost(found, exact) == 0


def test_without_a_scale_small_gradients_are_lost(
    score: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what holds above is due to the scale."""
    monkeypatch.setattr(masks, "_FP16_SCALES", (1.0,))
    exact, found = score(torch.float32, WEIGHTS[0]), score(torch.float16, WEIGHTS[0])
    assert overlap(found, exact) < 0.9  # seen: .80
    assert num_lost(found, exact) > 0.01 * len(exact)
