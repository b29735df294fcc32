"""APET on whole backbones: bare at the start, a gradient for every entry, a cache or none."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from scalepet import backbones
from scalepet.backbones import Backbone
from scalepet.errors import ConfigError
from scalepet.pet import METHODS, Apet, plan_apet
from scalepet.pet.masked_forward import masked_names

NUM_CLASSES = 3
BACKBONES = ["t5", "t5-gated", "bert"]
ALL_KINDS = ("matrix", "embedding", "norm", "bias")


def make(name: str, folder: Path, **options):
    """(bare model, masked model, its method, config) on the same weights."""
    backbone = Backbone(
        str(folder / name), num_classes=NUM_CLASSES if name == "bert" else None, dropout=0.0
    )
    config = backbones.read_model_config(backbone)
    kinds = options.pop("kinds", ALL_KINDS if name == "bert" else ALL_KINDS[:3])
    method = plan_apet(backbones.sketch_sites(config), kinds=kinds, **options)
    bare, masked = (backbones.load_model(backbone, config, dtype=torch.float32) for _ in range(2))
    method.attach(masked.model)
    return bare.model, masked.model, method, config


def make_batch(name: str) -> dict[str, torch.Tensor]:
    """Every token of the vocabulary at once, so that every row of a table is looked up."""
    ids = torch.arange(60).reshape(4, 15)
    mask = torch.ones_like(ids)
    if name == "bert":
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 0])}
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.flip(0)}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_first_forward_is_exactly_that_of_the_bare_backbone(name, tiny_backbones):
    bare, masked, _, config = make(name, tiny_backbones, budget="30%", seed=1)
    loss_sum = partial(backbones.family_of(config).loss_sum, config=config)
    batch = make_batch(name)
    # Attention picks its kernel by whether a gradient is asked for; in the bare model none is.
    with torch.no_grad():
        assert torch.equal(loss_sum(bare.eval(), batch), loss_sum(masked.eval(), batch))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_entry_of_matrices_and_vectors_gets_a_gradient(name, tiny_backbones):
    kinds = ("matrix", "norm", "bias") if name == "bert" else ("matrix", "norm")
    _, masked, method, config = make(name, tiny_backbones, budget="100%", seed=1, kinds=kinds)
    batch = make_batch(name)
    backbones.family_of(config).loss_sum(masked.eval(), batch, config=config).backward()
    trained = {n: p for n, p in masked.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == method.num_parameters
    for parameter_name, parameter in trained.items():
        # A ReLU closed for all tokens has none, nor has the bias of a key: softmax does not see it.
        share = float((parameter.grad != 0).float().mean())
        assert share > 0.5, parameter_name


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_equal_those_of_dense_weights(name, tiny_backbones):
    bare, masked, method, config = make(name, tiny_backbones, budget="20%", seed=4)
    batch = make_batch(name)
    for model in (bare.requires_grad_(True), masked):
        backbones.family_of(config).loss_sum(model.eval(), batch, config=config).backward()
    dense = dict(bare.named_parameters())
    found = dict(masked.named_parameters())
    for tensor, positions in method.mask.positions.items():
        expected = dense[tensor].grad.flatten()[torch.from_numpy(positions).long()]
        torch.testing.assert_close(
            found[f"{tensor}_values"].grad,
            expected,
            atol=1e-5,
            rtol=1e-4,
            msg=partial("{}: {}".format, tensor),
        )


def test_tied_tensors_share_their_values(tiny_backbones):
    _, masked, method, _ = make("t5", tiny_backbones, budget="10%", seed=0, kinds=["embedding"])
    users = [module for module in masked.modules() if "weight" in masked_names(module)]
    shared = [module for module in users if module.weight is masked.shared.weight]
    assert len(shared) == 4, "shared, both stacks and the output projection"
    assert len({id(module.weight_values) for module in shared}) == 1
    assert sum(p.numel() for p in masked.parameters() if p.requires_grad) == method.num_parameters


@pytest.mark.parametrize("name", ["t5", "t5-gated"])
def test_generation_with_and_without_cache_agrees(name, tiny_backbones):
    bare, masked, _, _ = make(name, tiny_backbones, budget="30%", seed=1)
    torch.manual_seed(0)
    for parameter_name, parameter in masked.named_parameters():
        if parameter_name.endswith("_values"):
            parameter.data.normal_(std=0.5)
    batch = make_batch(name)
    texts = [
        backbones.write_text(model.eval(), batch, max_new_tokens=12, use_cache=use_cache)
        for model, use_cache in ((masked, True), (masked, False), (bare, True))
    ]
    assert torch.equal(texts[0], texts[1])
    assert texts[0].shape != texts[2].shape or not torch.equal(texts[0], texts[2])


def test_training_does_not_touch_the_backbone(tiny_backbones):
    bare, masked, _, config = make("t5", tiny_backbones, budget=300, seed=1)
    optimizer = torch.optim.SGD([p for p in masked.parameters() if p.requires_grad], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        backbones.family_of(config).loss_sum(masked, make_batch("t5"), config=config).backward()
        optimizer.step()
    frozen = dict(masked.named_parameters())
    assert all(torch.equal(frozen[n], p) for n, p in bare.named_parameters())


def test_the_plan_counts_before_anything_is_built(tiny_backbones):
    config = backbones.read_model_config(Backbone(str(tiny_backbones / "t5")))
    sites = backbones.sketch_sites(config)
    method = plan_apet(sites, budget="1%", include=["encoder.*"])
    num_eligible = sum(s.numel for s in sites if s.kind == "matrix" and s.name.startswith("enc"))
    assert method.num_parameters == round(num_eligible / 100)
    assert all(name.startswith("encoder.") for name in method.mask.positions)


def test_a_record_makes_the_same_method_again(tiny_backbones):
    config = backbones.read_model_config(Backbone(str(tiny_backbones / "t5")))
    sites = backbones.sketch_sites(config)
    first = plan_apet(sites, budget=100, seed=3, share="even", group_by="layer")
    record = first.record()
    again = METHODS["apet"](sites, **record["options"])
    assert isinstance(again, Apet)
    assert again.record() == record
    assert plan_apet(sites, budget=100, seed=4, share="even").record()["mask"] != record["mask"]


def test_more_than_there_is_is_refused_with_both_numbers(tiny_backbones):
    config = backbones.read_model_config(Backbone(str(tiny_backbones / "t5")))
    with pytest.raises(ConfigError, match=r"1,000,000.*allowed: at most \d"):
        plan_apet(backbones.sketch_sites(config), budget=1_000_000)
