"""The same losses and gradients as PEFT (0.21), with the same values on the same padded batch.

Two tensors are the same when their largest difference is below 1e-5 of the largest entry of PEFT's.

Where PEFT means something else, it is levelled out or left out:
- The slots of its prefix count as tokens in front: they move the positions of a BERT, and the
  position bias of a T5 reaches them. Ours have no position.
- Its prefix of a T5 is for the self-attention of the decoder alone; what it makes for the cross
  attention is thrown away. Of what it holds for N layers, layer i of the decoder gets 2 i modulo N:
  an even N gives two layers the same, an odd N from the number of layers on gives each its own.
- Its prompt of a BERT stands in front of the class token, ours behind it: that of a T5 is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from scalepet import backbones
from scalepet.backbones import Backbone, Site
from scalepet.pet import METHODS, Apet, plan_apet

LENGTH = 3  # of a prompt, slots of a prefix
SHIRA_R = 2
STD = 0.1  # of all values; with larger ones fp32 rounds by more than is allowed here
NUM_TOKENS, NUM_TARGETS = (9, 6, 4), (5, 4, 2)  # of the rows of the batch
NUM_PREFIX_LAYERS = {"t5": 3, "bert": 2}  # of PEFT; the backbones have two

Twin = tuple[str, str, Callable[[Tensor], Tensor]]
"""Our parameter, PEFT's, and the part of PEFT's that ours is, as a view."""


@dataclass(frozen=True)
class Pair:
    """A method as it is here and in PEFT.

    Attributes:
        plan: ``(sites, **options) -> Method``.
        configure: ``(method, bare model) -> PEFT's config``.
        twins: ``(method, model type) -> every parameter of the method with its twin``.
    """

    plan: Callable[..., Any]
    configure: Callable[[Any, Any], peft.PeftConfig]
    twins: Callable[[Any, str], Iterator[Twin]]


def configure_lora(method: Any, model: Any) -> peft.PeftConfig:
    return peft.LoraConfig(
        r=method.options["r"],
        lora_alpha=method.options["alpha"],
        use_rslora=method.options["rslora"],
        target_modules=modules_of(method.sites),
    )


def twins_of_lora(method: Any, model_type: str) -> Iterator[Twin]:
    for module in modules_of(method.sites):
        for name in ("lora_A", "lora_B"):
            yield f"{module}.{name}", f"base_model.model.{module}.{name}.default.weight", whole


def configure_ia3(method: Any, model: Any) -> peft.PeftConfig:
    return peft.IA3Config(
        target_modules=modules_of(method.sites),
        feedforward_modules=modules_of(site for site in method.sites if site.part == "ffn_out"),
    )


def twins_of_ia3(method: Any, model_type: str) -> Iterator[Twin]:
    for module in modules_of(method.sites):
        yield f"{module}.ia3", f"base_model.model.{module}.ia3_l.default", in_a_row


def configure_prompt(method: Any, model: Any) -> peft.PeftConfig:
    # By itself PEFT makes rows for the decoder, too, and never reads them.
    return peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=method.length, num_transformer_submodules=1
    )


def twins_of_prompt(method: Any, model_type: str) -> Iterator[Twin]:
    yield "prompt.rows", "prompt_encoder.default.embedding.weight", whole


def configure_prefix(method: Any, model: Any) -> peft.PeftConfig:
    model_type = model.config.model_type
    return peft.PrefixTuningConfig(
        task_type="SEQ_CLS" if model_type == "bert" else "SEQ_2_SEQ_LM",
        num_virtual_tokens=method.length,
        num_layers=NUM_PREFIX_LAYERS[model_type],
    )


def twins_of_prefix(method: Any, model_type: str) -> Iterator[Twin]:
    for layer, site in enumerate(method.sites):
        place = 2 * layer % NUM_PREFIX_LAYERS["t5"] if model_type == "t5" else layer
        attention = site.module.rpartition(".")[0]
        for which, name in enumerate(("keys", "values")):
            part = partial(part_of_prefix, index=2 * place + which, width=site.shape[0])
            ours = f"{attention}.prefix.{name}"
            yield ours, "prompt_encoder.default.embedding.weight", part


def plan_shira(sites: Any, **options: Any) -> Apet:
    """As many entries as SHiRA takes of every layer, SHIRA_R (rows + columns), anywhere in it."""
    method = plan_apet(sites, budget="100%", **options)
    assert isinstance(method, Apet)
    generator = torch.Generator().manual_seed(1)
    positions = {}
    for site in method.eligible:
        shuffled = torch.randperm(site.numel, generator=generator)
        positions[site.name] = shuffled[: SHIRA_R * sum(site.shape)].sort().values.numpy()
    return method.moved_to(positions)


def configure_shira(method: Any, model: Any) -> peft.PeftConfig:
    masks = {}
    for site in method.eligible:
        mask = torch.zeros(site.shape)
        mask.view(-1)[torch.from_numpy(method.mask.positions[site.name])] = 1
        masks[model.get_submodule(site.module)] = mask
    config = peft.ShiraConfig(r=SHIRA_R, target_modules=modules_of(method.eligible))
    config.mask_fn = lambda layer, r, **_: masks[layer]
    return config


def twins_of_shira(method: Any, model_type: str) -> Iterator[Twin]:
    for module in modules_of(method.eligible):
        theirs = f"base_model.model.{module}.shira_weight.default"
        yield f"{module}.weight_values", theirs, whole


def modules_of(sites: Iterable[Site]) -> list[str]:
    """Full names, which PEFT takes for what they are and not for the ends of other names."""
    return [site.module for site in sites]


def whole(tensor: Tensor) -> Tensor:
    return tensor


def in_a_row(tensor: Tensor) -> Tensor:
    return tensor.view(-1)


def part_of_prefix(tensor: Tensor, *, index: int, width: int) -> Tensor:
    """(slots, layers x (keys, values) x width) -> (slots, width)."""
    return tensor.unflatten(1, (-1, width))[:, index]


LORA = Pair(METHODS["lora"], configure_lora, twins_of_lora)
IA3 = Pair(METHODS["ia3"], configure_ia3, twins_of_ia3)
PROMPT = Pair(METHODS["prompt"], configure_prompt, twins_of_prompt)
PREFIX = Pair(METHODS["prefix"], configure_prefix, twins_of_prefix)
SHIRA = Pair(plan_shira, configure_shira, twins_of_shira)

QV = {"r": 4, "alpha": 7.0}
ALL_LINEAR = {**QV, "rslora": True, "parts": ("q", "k", "v", "o", "ffn_in", "ffn_out")}
IN_DECODER = {"length": LENGTH, "include": ("decoder.*.SelfAttention.k.weight",)}
NOT_SQUARE = {"parts": ("q", "ffn_in")}

CASES = [
    pytest.param(LORA, "t5-gated", QV, id="lora-t5"),
    pytest.param(LORA, "bert", QV, id="lora-bert"),
    pytest.param(LORA, "t5-gated", ALL_LINEAR, id="rslora-t5"),
    pytest.param(LORA, "bert", ALL_LINEAR, id="rslora-bert"),
    pytest.param(IA3, "t5-gated", {}, id="ia3-t5"),
    pytest.param(IA3, "bert", {}, id="ia3-bert"),
    pytest.param(PROMPT, "t5-gated", {"length": LENGTH}, id="prompt-t5"),
    pytest.param(PREFIX, "t5-gated", IN_DECODER, id="prefix-t5"),
    pytest.param(PREFIX, "bert", {"length": LENGTH}, id="prefix-bert"),
    pytest.param(SHIRA, "t5-gated", NOT_SQUARE, id="shira-t5"),
    pytest.param(SHIRA, "bert", NOT_SQUARE, id="shira-bert"),
]


@pytest.mark.parametrize(("pair", "name", "options"), CASES)
def test_loss_and_gradients_are_those_of_peft(
    pair: Pair, name: str, options: dict[str, Any], tiny_backbones: Path
) -> None:
    num_classes = 3 if name == "bert" else None
    backbone = Backbone(str(tiny_backbones / name), num_classes=num_classes, dropout=0.0)
    config = backbones.read_model_config(backbone)
    method = pair.plan(backbones.sketch_sites(config), **options)
    ours, bare = (backbones.load_model(backbone, config, dtype=torch.float32) for _ in range(2))
    batch = make_batch(config.model_type)
    their_batch = level_positions(ours.model, bare.model, batch) if pair is PREFIX else batch

    method.attach(ours.model)
    theirs = peft.get_peft_model(bare.model, pair.configure(method, bare.model))
    twins = list(pair.twins(method, config.model_type))
    fill(ours.model, theirs, twins)
    loss_sum = partial(backbones.family_of(config).loss_sum, config=config)
    our_loss = loss_sum(ours.model.eval(), batch)
    their_loss = loss_sum(theirs.eval(), their_batch)
    our_loss.backward()
    their_loss.backward()

    assert_same("loss", our_loss, their_loss)
    for our_name, their_name, part in twins:
        their_gradient = part(gradient_of(theirs, their_name))
        assert_same(our_name, gradient_of(ours.model, our_name), their_gradient)


def make_batch(model_type: str) -> dict[str, Tensor]:
    """Rows of unequal lengths, padded on the right."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(max(NUM_TOKENS)) < torch.tensor(NUM_TOKENS)[:, None]
    ids = torch.randint(2, 60, mask.shape, generator=generator) * mask
    labels = torch.tensor([2, 0, 1])
    if model_type == "t5":
        ignored = torch.arange(max(NUM_TARGETS)) >= torch.tensor(NUM_TARGETS)[:, None]
        targets = torch.randint(2, 60, ignored.shape, generator=generator)
        labels = targets.masked_fill(ignored, -100)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def level_positions(ours: Any, theirs: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the slots of PEFT's prefix out of all positions; the batch for its model."""
    if theirs.config.model_type == "bert":  # PEFT adds the number of slots
        return {**batch, "position_ids": torch.arange(max(NUM_TOKENS))[None] - LENGTH}
    for model in (ours, theirs):
        nn.init.zeros_(model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
    return batch


def fill(ours: nn.Module, theirs: nn.Module, twins: list[Twin]) -> None:
    """Random values for all that the method trains, the same on both sides."""
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert trained == {our_name for our_name, _, _ in twins}
    torch.manual_seed(3)
    with torch.no_grad():
        for our_name, their_name, part in twins:
            values = ours.get_parameter(our_name).normal_(std=STD)
            part(theirs.get_parameter(their_name)).copy_(values)


def gradient_of(model: nn.Module, name: str) -> Tensor:
    gradient = model.get_parameter(name).grad
    assert gradient is not None, name
    return gradient


def assert_same(name: str, ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape, name
    largest = theirs.abs().max()
    assert largest > 0, f"{name}: nothing to compare"
    assert (ours - theirs).abs().max() < 1e-5 * largest, name
