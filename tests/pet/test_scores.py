"""Gradients of whole tensors, and the masks that are chosen by them, against plain autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scalepet import backbones, pet
from scalepet.backbones import Backbone
from scalepet.pet import plan_apet, score_shards, scores, watching

KINDS = ("matrix", "embedding", "norm", "bias")


def load(folder: Path, name: str) -> tuple[Any, Any, dict[str, Tensor]]:
    """Config, model in eval mode, and a padded batch."""
    backbone = Backbone(str(folder / name), dropout=0.0, num_classes=3)
    config = backbones.read_model_config(backbone)
    model = backbones.load_model(backbone, config, dtype=torch.float32).model.eval()
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (4, 1), generator=generator)
    if name == "vit":
        pixels = torch.randn(4, 3, 16, 16, generator=generator)
        return config, model, {"pixel_values": pixels, "labels": labels}
    ids = torch.randint(0, 60, (4, 7), generator=generator)  # the padding token among them
    mask = torch.tensor([[1] * 7, [1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])
    if name.startswith("t5"):
        labels = torch.randint(2, 60, (4, 5), generator=generator)
    return config, model, {"input_ids": ids, "attention_mask": mask, "labels": labels}


def dense_gradients(config: Any, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.requires_grad_(True)
    backbones.family_of(config).loss_sum(model, batch, config=config).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tile_elements", [2**22, 100])
@pytest.mark.parametrize("name", ["t5", "t5-gated", "bert", "vit"])
def test_watched_gradients_are_those_of_autograd(name, tile_elements, tiny_backbones, monkeypatch):
    """Tied embeddings, vectors, convolutions and padding included, however rows are tiled."""
    monkeypatch.setattr(scores, "_TILE_ELEMENTS", tile_elements)
    config, model, batch = load(tiny_backbones, name)
    shapes = {site.name: site.shape for site in backbones.sketch_sites(config)}
    loss_sum = backbones.family_of(config).loss_sum
    plain = loss_sum(model, batch, config=config)
    with watching(model, shapes) as found:
        watched = loss_sum(model, batch, config=config)
        watched.backward()
    assert torch.equal(plain, watched)
    assert not backbones.overridden_modules(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    expected = dense_gradients(config, model, batch)
    for site in shapes:
        torch.testing.assert_close(found.sums[site].view(shapes[site]), expected[site])


@pytest.mark.parametrize("score", ["magnitude", "gradient", "snip"])
@pytest.mark.parametrize("name", ["t5", "bert"])
def test_the_mask_has_the_largest_scores(name, score, tiny_backbones):
    config, model, batch = load(tiny_backbones, name)
    apet = plan_apet(backbones.sketch_sites(config), budget=300, select=score, kinds=KINDS)
    assert isinstance(apet, pet.Apet)
    gradients = None
    if score != "magnitude":
        with watching(model, apet.shapes) as gradients:
            backbones.family_of(config).loss_sum(model, batch, config=config).backward()
    shards = score_shards(score, apet.shapes, whole=model.get_parameter, gradients=gradients)
    mask = apet.choose(shards).mask
    assert mask is not None and mask.count == 300
    dense = dense_gradients(config, model, batch)
    weights = dict(model.named_parameters())
    by_score = {
        "magnitude": lambda n: weights[n].abs(),
        "gradient": lambda n: dense[n].abs(),
        "snip": lambda n: (weights[n] * dense[n]).abs(),
    }[score]
    flat = {site: by_score(site).detach().flatten() for site in apet.shapes}
    threshold = torch.cat(list(flat.values())).topk(300).values[-1]
    for site, values in flat.items():
        expected = (values >= threshold).nonzero().flatten().tolist()
        assert mask.positions.get(site, torch.empty(0)).tolist() == expected, site
