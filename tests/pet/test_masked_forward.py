"""One masked module at a time, against the same module with a dense weight and masked gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from scalepet.pet.masked_forward import mask_module, merged

NUM_TOKENS = 11


def make_cases() -> dict[str, tuple[nn.Module, torch.Tensor, tuple[str, ...]]]:
    """Name -> (module, input, names of its masked parameters)."""
    torch.manual_seed(0)
    x = torch.randn(3, NUM_TOKENS, 8)
    ids = torch.randint(0, 20, (3, NUM_TOKENS))
    return {
        "linear": (nn.Linear(8, 6), x, ("weight",)),
        "linear without bias": (nn.Linear(8, 6, bias=False), x, ("weight",)),
        "linear, bias only": (nn.Linear(8, 6), x, ("bias",)),
        "linear, both": (nn.Linear(8, 6), x, ("weight", "bias")),
        "embedding": (nn.Embedding(20, 8), ids, ("weight",)),
        "embedding with padding": (nn.Embedding(20, 8, padding_idx=3), ids, ("weight",)),
        "layer norm": (nn.LayerNorm(8), x, ("weight", "bias")),
        "rms norm": (T5LayerNorm(8), x, ("weight",)),
        "convolution": (nn.Conv1d(NUM_TOKENS, 5, 3), x, ("weight", "bias")),
    }


CASES = make_cases()


def mask_some(module: nn.Module, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Mask about a third of each parameter with random values; the positions by name."""
    positions = {}
    for name in names:
        size = getattr(module, name).numel()
        positions[name] = torch.randperm(size)[: max(1, size // 3)].sort().values.int()
        values = nn.Parameter(torch.randn(len(positions[name])).to(getattr(module, name).dtype))
        mask_module(module, name, values, positions[name])
    return positions


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_equal_those_of_the_dense_sum(case, dtype):
    module, x, names = copy.deepcopy(CASES[case])
    module, x = module.to(dtype), x if x.dtype == torch.int64 else x.to(dtype)
    module.requires_grad_(False)
    dense = copy.deepcopy(module)
    positions = mask_some(module, names)
    for name, indices in positions.items():
        parameter = getattr(dense, name).requires_grad_(True)
        values = getattr(module, f"{name}_values")
        parameter.data.view(-1)[indices] += values.data
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for _ in range(2)]
    outputs = [part(value) for part, value in zip((module, dense), inputs, strict=True)]
    assert torch.equal(*outputs)
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(weights)
    if x.is_floating_point():
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for name, indices in positions.items():
        expected = getattr(dense, name).grad.flatten()[indices]
        # The dense gradient of a table is summed in 16 bits, ours in 32.
        limits = {"rtol": 0.04, "atol": 0.01} if dtype is torch.bfloat16 else {}
        found = getattr(module, f"{name}_values").grad
        torch.testing.assert_close(found, expected, **limits)


@pytest.mark.parametrize("case", CASES)
def test_the_frozen_weight_is_bit_identical_after_forward_and_backward(case):
    module, x, names = copy.deepcopy(CASES[case])
    module.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    mask_some(module, names)
    module(x).sum().backward()
    for name, parameter in before.items():
        assert torch.equal(getattr(module, name), parameter), name


def test_the_weight_is_restored_when_the_product_fails():
    weight = torch.randn(4, 5)
    before = weight.clone()
    with pytest.raises(RuntimeError), merged(weight, torch.arange(3), torch.ones(3)):
        raise RuntimeError
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    "case", [case for case in CASES if "linear" in case or case == "embedding"]
)
def test_autograd_holds_no_tensor_of_weight_shape(case):
    module, x, names = copy.deepcopy(CASES[case])
    module.requires_grad_(False)
    mask_some(module, names)
    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        module(x.requires_grad_(x.is_floating_point()))
    assert [t.shape for t in held if t.shape == module.weight.shape] == []


def test_the_count_of_held_tensors_sees_a_dense_sum():
    """The test above can fail: a plain sum of weight and scattered values is held."""
    weight, x = torch.randn(6, 8), torch.randn(3, 8, requires_grad=True)
    values = torch.randn(6, 8, requires_grad=True)
    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        nn.functional.linear(x, weight + values)
    assert any(t.shape in (weight.shape, weight.t().shape) for t in held)


def test_inputs_are_not_held_where_the_values_are_frozen():
    module, x, _ = copy.deepcopy(CASES["linear"])
    module.requires_grad_(False)
    mask_some(module, ("weight",))
    module.weight_values.requires_grad_(False)
    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        module(x.requires_grad_(True)).sum().backward()
    assert held == []


def test_class_name_and_state_dict_names_stay():
    module, _, _ = copy.deepcopy(CASES["linear, both"])
    names = set(module.state_dict())
    mask_some(module, ("weight", "bias"))
    assert type(module) is nn.Linear
    assert set(module.state_dict()) - names == {"weight_values", "bias_values"}
