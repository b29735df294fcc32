"""Which biases may rightly get no gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scalepet import backbones
from scalepet.backbones import Backbone
from scalepet.pet import METHODS


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_the_biases_of_keys_may_rest_since_softmax_does_not_see_them(
    name: str, tiny_backbones: Path
) -> None:
    backbone = Backbone(
        str(tiny_backbones / name), num_classes=3 if name == "bert" else None, dropout=0.0
    )
    config = backbones.read_model_config(backbone)
    method = METHODS["bitfit"](backbones.sketch_sites(config))
    model = backbones.load_model(backbone, config, dtype=torch.float64).model.eval()
    method.attach(model)
    ids = torch.arange(2, 20).view(2, 9)
    batch = {
        "input_ids": ids,
        "labels": torch.tensor([0, 2]) if name == "bert" else ids[:, :4].clone(),
    }
    model(**batch).loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    unseen = {n for n, p in trained.items() if p.grad.abs().max() < 1e-12}
    assert unseen == {n for n in trained if method.may_rest(n)}
    assert len(unseen) == (6 if name == "t5" else 2)  # every attention has one
