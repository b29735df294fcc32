"""Calibrated methods against the published formulas, written here in plain torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.masking_utils import eager_mask

from scalepet import backbones, pet
from scalepet.backbones import Backbone, EnsembleTensor, joints, members_of, shadowed
from scalepet.errors import CheckpointError, ConfigError
from scalepet.pet import METHODS
from scalepet.pet.calibration import is_scale

NAMES = ["vit", "bert", "t5"]
CALIBRATED: dict[str, dict[str, Any]] = {
    "adapter": {"bottleneck": 4, "placement": "parallel_attention"},
    "lora": {"r": 3, "parts": ("k", "v")},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
    "bitfit": {},
    "ia3": {},
    "apet": {"budget": 400, "kinds": ("matrix", "embedding", "norm", "bias")},
}

Grads = dict[str, Tensor]


def backbone_of(name: str, folder: Path) -> Backbone:
    num_classes = None if name.startswith("t5") else 3
    return Backbone(str(folder / name), num_classes=num_classes, dropout=0.0)


def load(name: str, folder: Path) -> Any:
    backbone = backbone_of(name, folder)
    config = backbones.read_model_config(backbone)
    return backbones.load_model(backbone, config, dtype=torch.float32).model.eval()


def plan(method: str, name: str, folder: Path, **changes: Any) -> Any:
    sites = backbones.sketch_sites(backbones.read_model_config(backbone_of(name, folder)))
    return METHODS[method](sites, **{"calibrated": True, **CALIBRATED[method], **changes})


def make_batch(name: str) -> dict[str, Tensor]:
    """Rows of unequal lengths, where there are lengths."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor([2, 0, 1])
    if name == "vit":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator), "labels": labels}
    mask = torch.arange(9) < torch.tensor([9, 6, 4])[:, None]
    ids = torch.randint(2, 60, mask.shape, generator=generator) * mask
    if name.startswith("t5"):
        labels = torch.randint(2, 60, (3, 5), generator=generator)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def tuned(model: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def stir(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in tuned(model).values():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def logits_and_gradients(model: Any, name: str, wanted: Mapping[str, Tensor]) -> tuple[Any, Grads]:
    """Gradients of the summed cross-entropy."""
    logits = model(**make_batch(name)).logits
    loss = F.cross_entropy(logits.flatten(0, -2), make_batch(name)["labels"].flatten())
    found = torch.autograd.grad(loss, list(wanted.values()))
    return logits.detach(), dict(zip(wanted, found, strict=True))


def assert_published(method: str, name: str, folder: Path, published: Any, **changes: Any) -> None:
    """``published(bare model, leaves)``: a context in which the bare model is the published one."""
    ours, theirs = load(name, folder), load(name, folder)
    plan(method, name, folder, **changes).attach(ours)
    stir(ours)
    leaves = {n: p.detach().clone().requires_grad_(True) for n, p in tuned(ours).items()}
    logits, gradients = logits_and_gradients(ours, name, tuned(ours))
    with published(theirs, leaves):
        expected, expected_gradients = logits_and_gradients(theirs, name, leaves)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)
    for key, gradient in gradients.items():
        assert gradient.abs().max() > 0, key
        say = partial("{}: {}".format, key)
        torch.testing.assert_close(gradient, expected_gradients[key], atol=1e-6, rtol=1e-3, msg=say)


def modules_with(leaves: Mapping[str, Tensor], ending: str) -> list[str]:
    return [n.removesuffix(ending) for n in leaves if n.endswith(ending)]


@contextlib.contextmanager
def as_prefix(model: Any, leaves: Grads) -> Iterator[None]:
    """Softmax over slots and tokens together; then the slots' weights are divided by their sum."""

    def attention(
        module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        path, heads = paths[module], partial(split_heads, like=query)
        keys = heads(leaves[f"{path}.keys"] * leaves[f"{path}.keys_scale"])
        values = heads(leaves[f"{path}.values"] * leaves[f"{path}.values_scale"])
        scores = query @ torch.cat([keys, key], dim=2).transpose(2, 3)
        if model.config.model_type != "t5":
            scores = scores / query.shape[-1] ** 0.5
        slots = keys.shape[2]
        for added in (kwargs.get("position_bias"), mask):
            if added is not None:
                zeros = added.new_zeros(*added.shape[:-1], slots)
                scores = scores + torch.cat([zeros, added], dim=-1)
        weights = scores.softmax(dim=-1)
        of_slots, of_tokens = weights[..., :slots], weights[..., slots:]
        of_slots = of_slots / of_slots.sum(dim=-1, keepdim=True)
        out = torch.cat([of_slots, of_tokens], dim=-1) @ torch.cat([values, value], dim=2)
        return out.transpose(1, 2), None

    names = modules_with(leaves, ".prefix.keys")
    paths = {model.get_submodule(name): f"{name}.prefix" for name in names}
    transformers.AttentionInterface.register("published_prefix", attention)
    transformers.AttentionMaskInterface.register("published_prefix", eager_mask)
    model.set_attn_implementation("published_prefix")
    yield


def split_heads(rows: Tensor, *, like: Tensor) -> Tensor:
    """(slots, width) -> (batch, heads, slots, head width)."""
    batch, heads, _, width = like.shape
    return rows.view(len(rows), heads, width).transpose(0, 1)[None].expand(batch, -1, -1, -1)


@contextlib.contextmanager
def as_lora(model: Any, leaves: Grads) -> Iterator[None]:
    """W + s B A."""
    with contextlib.ExitStack() as stack:
        for path in modules_with(leaves, ".lora_A"):
            module = model.get_submodule(path)
            down, up, scale = (leaves[f"{path}.lora_{what}"] for what in ("A", "B", "B_scale"))
            weight = module.weight.detach() + scale * (up @ down)
            stack.enter_context(shadowed(module, {"weight": weight}))
        yield


@contextlib.contextmanager
def as_adapter(model: Any, leaves: Grads) -> Iterator[None]:
    """s * up(gelu(down(x))), x what the attention reads: in a ViT, norm1 of the block's input."""
    for path in modules_with(leaves, ".adapter.up"):
        reads, adds = HOOKS[model.config.model_type](model, path)
        own = {n: leaves[f"{path}.adapter.{n}"] for n in BOTTLENECK}
        seen: list[Tensor] = []
        reads(seen.append)
        adds(lambda seen=seen, own=own: bottleneck(seen[-1], **own))
    yield


BOTTLENECK = ("down", "down_bias", "up", "up_bias", "up_scale")


def bottleneck(
    x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, up_scale: Tensor
) -> Tensor:
    return up_scale * (F.gelu(x @ down.T + down_bias) @ up.T + up_bias)


def after_norm_beside(norm: nn.Module, attention: nn.Module) -> tuple[Any, Any]:
    """Read what the norm gives; add to what the attention gives."""
    return (
        lambda see: norm.register_forward_hook(lambda m, args, output: see(output)),
        lambda add: attention.register_forward_hook(
            lambda m, args, output: (output[0] + add(), *output[1:])
        ),
    )


def around_bert(model: Any, path: str) -> tuple[Any, Any]:
    """Read what the block reads; add to what the norm behind its attention reads."""
    block = model.get_submodule(path.removesuffix(".attention.output"))
    return (
        lambda see: block.register_forward_pre_hook(lambda m, args: see(args[0])),
        lambda add: block.attention.output.LayerNorm.register_forward_pre_hook(
            lambda m, args: (args[0] + add(),)
        ),
    )


def around_vit(model: Any, path: str) -> tuple[Any, Any]:
    block = model.get_submodule(path.removesuffix(".attention"))
    return after_norm_beside(block.layernorm_before, block.attention)


def around_t5(model: Any, path: str) -> tuple[Any, Any]:
    sublayer = model.get_submodule(path.removesuffix(".SelfAttention"))
    return after_norm_beside(sublayer.layer_norm, sublayer.SelfAttention)


HOOKS: dict[str, Callable[[Any, str], tuple[Any, Any]]] = {
    "bert": around_bert,
    "vit": around_vit,
    "t5": around_t5,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "published"),
    [("adapter", as_adapter), ("lora", as_lora), ("prefix", as_prefix)],
)
def test_outputs_and_gradients_are_those_of_the_published_formula(
    method, published, name, tiny_backbones
):
    assert_published(method, name, tiny_backbones, published)


def test_parameters_of_lae_on_a_vit_base():
    """The published sizes, on the first five blocks of twelve."""
    sites = backbones.sketch_sites(transformers.ViTConfig())
    options: dict[str, Any] = {"include": ["vit.layers.[0-4].*"], "calibrated": True}
    adapter = METHODS["adapter"](sites, bottleneck=5, placement="parallel_attention", **options)
    assert adapter.num_parameters == 42_270
    assert METHODS["lora"](sites, r=5, parts=("k", "v"), **options).num_parameters == 76_810
    assert METHODS["prefix"](sites, length=10, **options).num_parameters == 76_810


def test_it_starts_as_published(tiny_backbones):
    model = load("vit", tiny_backbones)
    for method in ("adapter", "lora", "prefix"):
        plan(method, "vit", tiny_backbones).attach(model)
    found = {n: p.detach() for n, p in tuned(model).items()}
    assert all(torch.equal(p, torch.ones(1)) for n, p in found.items() if is_scale(n))
    slots = torch.cat([p.flatten() for n, p in found.items() if n.endswith((".keys", ".values"))])
    assert float(slots.min()) >= 0 and 0.009 < float(slots.max()) <= 0.01
    down = torch.cat([p.flatten() for n, p in found.items() if n.endswith((".down", ".lora_A"))])
    bound = 24**-0.5  # as torch starts a linear layer of that width
    assert 0.9 * bound < float(down.abs().max()) <= bound
    zeros = [p for n, p in found.items() if n.endswith((".up", ".lora_B", "_bias"))]
    assert len(zeros) == 10 and not any(p.any() for p in zeros)


@pytest.mark.parametrize("method", ["prompt", "bitfit", "ia3", "apet"])
@pytest.mark.parametrize("name", NAMES)
def test_by_analogy_the_scale_is_folded_into_an_uncalibrated_method(method, name, tiny_backbones):
    """Rows s P, biases b + s d, factors 1 + s (f - 1), weights W + s scatter(v)."""
    ours, plain = load(name, tiny_backbones), load(name, tiny_backbones)
    plan(method, name, tiny_backbones).attach(ours)
    plan(method, name, tiny_backbones, calibrated=False).attach(plain)
    stir(ours)
    values = tuned(ours)
    with torch.no_grad():
        for key, parameter in tuned(plain).items():
            start = 1.0 if method == "ia3" else 0.0
            parameter.copy_(start + values[f"{key}_scale"] * (values[key] - start))
    logits, gradients = logits_and_gradients(ours, name, values)
    expected, plain_gradients = logits_and_gradients(plain, name, tuned(plain))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for key, gradient in plain_gradients.items():
        scale, moved = values[f"{key}_scale"].detach(), values[key].detach() - start
        close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-3)
        close(gradients[key], scale * gradient)
        close(gradients[f"{key}_scale"], (moved * gradient).sum().view(1))


def test_what_dropout_leaves_of_a_prefix_sums_to_one():
    torch.manual_seed(0)
    query, keys = torch.randn(2, 4, 7, 6), torch.randn(2, 4, 3, 6)
    out = joints._attend_alone(query, keys, torch.ones_like(keys), scaling=0.4, dropout=0.5)
    is_one, is_zero = (torch.isclose(out, torch.tensor(value)) for value in (1.0, 0.0))
    assert bool((is_one | is_zero).all())  # nothing is left of one in eight
    assert 0.05 < float(is_zero.float().mean()) < 0.25


@pytest.mark.parametrize("name", NAMES)
def test_a_compensated_prefix_keeps_16_bits(name, tiny_backbones):
    model, logits = load(name, tiny_backbones), []
    plan("prefix", name, tiny_backbones).attach(model)
    stir(model)
    for dtype in (torch.float32, torch.bfloat16):
        batch = make_batch(name)
        if name == "vit":
            batch["pixel_values"] = batch["pixel_values"].to(dtype)
        with torch.no_grad():
            logits.append(model.to(dtype)(**batch).logits)
    assert logits[1].dtype == torch.bfloat16
    error = (logits[1].float() - logits[0]).abs().max() / logits[0].abs().max()
    assert error < 0.05


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", CALIBRATED)
@torch.no_grad()
def test_all_that_is_trained_is_read_when_it_is_used(method, name, calibrated, tiny_backbones):
    """Other values laid over the trained ones give what they give in their place."""
    model = load(name, tiny_backbones)
    plan(method, name, tiny_backbones, calibrated=calibrated).attach(model)
    stir(model)
    old = {n: p.detach().clone() for n, p in tuned(model).items()}
    stir(model)
    new = {n: p.detach().clone() for n, p in tuned(model).items()}
    expected = model(**make_batch(name)).logits
    for key, parameter in tuned(model).items():
        parameter.copy_(old[key])
    with all_shadowed(model, new):
        found = model(**make_batch(name)).logits
    assert torch.equal(found, expected)
    assert not torch.equal(model(**make_batch(name)).logits, expected)


@contextlib.contextmanager
def all_shadowed(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Tensors over all that is trained; tied ones have several owners."""
    names = {id(parameter): name for name, parameter in tuned(model).items()}
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            own = dict(module.named_parameters(recurse=False)).items()
            over = {n: tensors[names[id(p)]] for n, p in own if id(p) in names}
            stack.enter_context(shadowed(module, over))
        yield


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", CALIBRATED)
@torch.no_grad()
def test_an_ensemble_of_trained_tensors_computes_as_each_member(
    method, name, calibrated, tiny_backbones
):
    model, expected, members = load(name, tiny_backbones), [], []
    plan(method, name, tiny_backbones, calibrated=calibrated).attach(model)
    batch = make_batch(name)
    unlabelled = batch if name == "t5" else {**batch, "labels": None}
    for _ in range(2):
        stir(model)
        expected.append(model(**batch).logits)
        members.append({n: p.detach().clone() for n, p in tuned(model).items()})
    together = {n: EnsembleTensor([each[n] for each in members]) for n in members[0]}
    with all_shadowed(model, together):
        found = members_of(model(**unlabelled).logits)
    torch.testing.assert_close(found, tuple(expected), atol=0, rtol=0)
    assert not torch.equal(*found)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_whole_masked_tensors_are_seen_behind_a_scale(name, tiny_backbones):
    """As the moves of a mask need them."""
    masked, dense = load(name, tiny_backbones), load(name, tiny_backbones).requires_grad_(True)
    method = plan("apet", name, tiny_backbones, move_every=2)
    method.attach(masked)
    stir(masked)
    trained = {n: p.detach() for n, p in tuned(masked).items()}
    with torch.no_grad():
        for key, parameter in dense.named_parameters():
            parameter.copy_(method.merged(key, parameter, trained))
    shapes = {key: method.shapes[key] for key in method.values}
    values = {key: masked.get_parameter(own) for key, own in method.values.items()}
    with pet.collecting(values, shapes) as found:
        logits_and_gradients(masked, name, tuned(masked))
    whole = {key: dense.get_parameter(key) for key in shapes}
    _, expected = logits_and_gradients(dense, name, whole)
    for key, shape in shapes.items():
        torch.testing.assert_close(found.sums[key].view(shape), expected[key], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["adapter", "lora", "prefix", "prompt", "ia3"])
def test_every_scale_gets_a_gradient_from_the_second_step_on(method, name, tiny_backbones):
    model = load(name, tiny_backbones)
    plan(method, name, tiny_backbones).attach(model)
    optimizer = torch.optim.AdamW(tuned(model).values(), lr=1e-3)
    for _ in range(2):
        for key, gradient in logits_and_gradients(model, name, tuned(model))[1].items():
            tuned(model)[key].grad = gradient
        optimizer.step()
    scales = [p for n, p in tuned(model).items() if is_scale(n)]
    assert scales and all(scale.item() != 1 for scale in scales)


@pytest.mark.parametrize(
    ("method", "options", "fault"),
    [
        ("lora", {"alpha": 8.0}, "alpha: 8.0 has no meaning with calibrated: true"),
        ("lora", {"rslora": True}, "rslora: true has no meaning with calibrated: true"),
        ("prefix", {"std": 0.5}, "std: 0.5 has no meaning with calibrated: true"),
        ("apet", {"operation": "plug"}, "calibrated: true with operation: plug and select: random"),
        ("apet", {"operation": "mix"}, "calibrated: true with operation: mix and select: random"),
        ("apet", {"select": "snip"}, "calibrated: true with operation: add and select: snip"),
    ],
)
def test_what_does_not_go_with_it_is_refused(method, options, fault, tiny_backbones):
    with pytest.raises(ConfigError, match=fault):
        plan(method, "bert", tiny_backbones, **options)


@pytest.mark.parametrize(
    ("method", "name", "options"),
    [
        ("lora", "bert", {"alpha": 3.0}),  # alpha / r is 1
        ("ia3", "bert", {}),
        ("prompt", "t5", {}),
        ("apet", "bert", {"kinds": ("matrix",)}),
    ],
)
@torch.no_grad()
def test_peft_gets_the_scales_multiplied_in(method, name, options, tiny_backbones):
    ours, plain = load(name, tiny_backbones), load(name, tiny_backbones)
    own = {key: value for key, value in options.items() if key != "alpha"}
    calibrated = plan(method, name, tiny_backbones, **own)
    calibrated.attach(ours)
    stir(ours)
    tensors = {n: p.detach() for n, p in tuned(ours).items()}
    adapter = pet.to_peft(calibrated, tensors, head={}, is_t5=name == "t5")
    expected = plan(method, name, tiny_backbones, calibrated=False, **options)

    def shapes(method: Any) -> dict[str, tuple[int, ...]]:
        model = load(name, tiny_backbones)
        method.attach(model)
        return {n: tuple(p.shape) for n, p in tuned(model).items()}

    given = {"shapes": shapes, "head_names": [], "is_t5": name == "t5"}
    found, values = pet.from_peft(expected, adapter, **given)
    found.attach(plain)
    for key, parameter in tuned(plain).items():
        parameter.copy_(values[key])
    batch = make_batch(name)
    torch.testing.assert_close(plain(**batch).logits, ours(**batch).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match="PEFT has no scales; allowed: calibrated: false"):
        pet.from_peft(calibrated, adapter, **given)


def test_peft_has_no_compensated_prefix(tiny_backbones):
    with pytest.raises(CheckpointError, match="which PEFT cannot; allowed: calibrated: false"):
        pet.to_peft(plan("prefix", "bert", tiny_backbones), {}, head={}, is_t5=False)
