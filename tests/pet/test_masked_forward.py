"""One masked module at a time, against the same module with a dense weight and masked gradients;
then what whole backbones with masks keep and compute.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.t5.modeling_t5 import T5LayerNorm

from scalepet import backbones
from scalepet.backbones import Backbone
from scalepet.pet import plan_apet
from scalepet.pet.masked_forward import leave_sink, mask_module, merged

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


def mask_at(layer: nn.Linear, positions: list[int]) -> nn.Parameter:
    values = nn.Parameter(torch.randn(len(positions)))
    mask_module(layer.requires_grad_(False), "weight", values, torch.tensor(positions).int())
    return values


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """What autograd keeps for backward; every storage once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        run()
    return sum(kept.values())


@pytest.mark.parametrize(("num_touched", "num_kept"), [(1, 1), (4, 4), (5, 256)])
def test_few_touched_columns_are_kept_instead_of_the_input(num_touched, num_kept):
    """Up to 1/64 of them, so that 64 layers that read one input keep no more than it."""
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 6), torch.randn(3, NUM_TOKENS, 256)
    positions = [256 * (index % 6) + 50 * index for index in range(num_touched)]
    values = mask_at(layer, sorted(positions))
    assert kept_bytes(lambda: layer(x)) == 4 * 3 * NUM_TOKENS * num_kept
    grad_y = torch.randn(3, NUM_TOKENS, 6)
    layer(x).backward(grad_y)
    expected = grad_y.flatten(0, 1).double().t() @ x.flatten(0, 1).double()
    assert values.grad is not None
    found = values.grad.double()
    torch.testing.assert_close(found, expected.flatten()[sorted(positions)], rtol=1e-5, atol=1e-5)


def test_positions_that_are_changed_in_place_are_looked_up_anew():
    """As ``Apet.place`` changes them."""
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 6), torch.randn(NUM_TOKENS, 256)
    values = mask_at(layer, [1, 300])
    layer(x).sum().backward()
    layer.get_buffer("weight_positions").copy_(torch.tensor([7, 1000]))
    values.grad = None
    layer(x).sum().backward()
    expected = x.sum(0)[[7, 1000 % 256]]
    torch.testing.assert_close(values.grad, expected, rtol=1e-5, atol=1e-5)


def test_a_sink_sees_the_whole_input_of_a_sparse_mask():
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 6), torch.randn(NUM_TOKENS, 256)
    values = mask_at(layer, [1, 300])
    seen = []

    class Sink:
        def add_linear(self, x: Tensor, grad_y: Tensor) -> None:
            seen.append(x)

    leave_sink(values, Sink())  # type: ignore[arg-type]
    layer(x).sum().backward()
    assert torch.equal(seen[0], x)


def test_an_input_without_gradient_costs_no_product():
    layer, x = nn.Linear(256, 6), torch.randn(NUM_TOKENS, 256)
    mask_at(layer, [1, 300])  # two rows, two columns
    for needs_gradient in (False, True):
        y = layer(x.requires_grad_(needs_gradient))
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        floor = 2 * NUM_TOKENS * 256 * 6 * needs_gradient
        assert counter.get_total_flops() == floor + 2 * NUM_TOKENS * 2 * 2


NUM_TEXTS, NUM_INPUTS, NUM_LABELS = 4, 7, 5


def make_backbone(name: str, folder: Path, **options: Any) -> tuple[nn.Module, Any]:
    """A tiny masked backbone, and a function from it to its loss."""
    backbone = Backbone(str(folder / name), dropout=0.0, num_classes=3 if name == "bert" else None)
    config = backbones.read_model_config(backbone)
    model = backbones.load_model(backbone, config, dtype=torch.float32).model
    plan_apet(backbones.sketch_sites(config), **options).attach(model)
    ids = torch.randint(2, 60, (NUM_TEXTS, NUM_INPUTS))
    labels = torch.randint(0, 3, (NUM_TEXTS,)) if name == "bert" else ids[:, :NUM_LABELS]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    loss_sum = backbones.family_of(config).loss_sum
    return model, partial(loss_sum, model, batch, config=config)


class NoteProducts(TorchDispatchMode):
    """The shapes of all matrix products but those of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.shapes.append((*left.shape, right.shape[1]))
        return out


@pytest.mark.parametrize(
    ("name", "last", "above"),
    [
        ("t5", "decoder.block.1.layer.2.DenseReluDense.wo.weight", [(20, 60, 24)]),
        ("bert", "*layer.1.output.dense.weight", [(4, 3, 24), (4, 24, 24)]),
    ],
)
def test_backward_stops_at_the_lowest_masked_layer(name, last, above, tiny_backbones):
    """A mask in the last linear layer: the products above, the values' own, none below."""
    _, run = make_backbone(name, tiny_backbones, budget="100%", include=[last])
    loss = run()
    with NoteProducts() as products:
        loss.backward()
    num_tokens = NUM_TEXTS * (NUM_LABELS if name == "t5" else NUM_INPUTS)
    assert products.shapes == [*above, (24, num_tokens, 40)]


@pytest.mark.parametrize("name", ["t5", "t5-gated", "bert"])
@pytest.mark.parametrize("budget", [60, "30%"])
def test_a_step_costs_the_frozen_floor_and_the_products_of_the_values(name, budget, tiny_backbones):
    """Counted operations of all linear layers, W weights and N tokens each:

    4 N W (forward, gradient of the input)
    - 2 N W where nothing trainable lies below: queries, keys and values of every first block
    + 2 N R C for every masked one, R touched rows and C touched columns (all, if more than half)
    """
    model, run = make_backbone(name, tiny_backbones, budget=budget, kinds=("matrix",))
    expected = 0
    lowest = []

    def count(layer: nn.Linear, inputs: tuple[Tensor]) -> None:
        nonlocal expected
        num_tokens = inputs[0].numel() // layer.in_features
        expected += 4 * num_tokens * layer.weight.numel()
        if not inputs[0].requires_grad:
            lowest.append(layer)
            expected -= 2 * num_tokens * layer.weight.numel()
        if hasattr(layer, "weight_values"):
            expected += 2 * num_tokens * num_touched(layer)

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for layer in linear:
        layer.register_forward_pre_hook(count)
    with FlopCounterMode(display=False) as counter:
        run().backward()
    found = counter.get_flop_counts()["Global"]
    assert found[torch.ops.aten.mm] + found.get(torch.ops.aten.addmm, 0) == expected
    assert len(linear) > 12 and len(lowest) == (3 if name == "bert" else 6)
    assert any(hasattr(layer, "weight_values") for layer in lowest)


def num_touched(layer: nn.Linear) -> int:
    """Entries of the dense product that the gradient of the values is picked from."""
    positions = layer.get_buffer("weight_positions")
    product = 1
    for indices, size in zip(
        (positions // layer.in_features, positions % layer.in_features),
        layer.weight.shape,
        strict=True,
    ):
        found = len(set(indices.tolist()))
        product *= found if 2 * found <= size else size
    return product


class NoteCreated(TorchDispatchMode):
    """Every tensor of one of some sizes that any operation gives, as long as somebody has it."""

    def __init__(self, sizes: set[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.created: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.numel() in self.sizes:
                self.created.append(weakref.ref(tensor))
        return out

    def kept(self, model: nn.Module) -> list[Tensor]:
        """Those that live, and are not the model's own."""
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        living = [tensor for ref in self.created if (tensor := ref()) is not None]
        return [t for t in living if t.untyped_storage().data_ptr() not in own]


@pytest.mark.parametrize("name", ["t5", "t5-gated", "bert"])
@pytest.mark.parametrize("budget", [60, "100%"])
def test_no_tensor_of_the_size_of_a_weight_is_kept(name, budget, tiny_backbones):
    model, run = make_backbone(name, tiny_backbones, budget=budget, kinds=("matrix",))
    values = {id(p) for n, p in model.named_parameters() if n.endswith("_values")}
    sizes = {p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in values}
    saved: list[Tensor] = []
    with (
        NoteCreated(sizes) as created,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        loss = run()
        assert created.kept(model) == []
        loss.backward()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    strangers = [t for t in saved if t.untyped_storage().data_ptr() not in own]
    assert len(strangers) > 10 and [t.shape for t in strangers if t.numel() in sizes] == []
    grads = {p.grad.untyped_storage().data_ptr() for p in model.parameters() if p.grad is not None}
    kept = [t for t in created.kept(model) if t.untyped_storage().data_ptr() not in grads]
    assert kept == []


def test_the_count_of_created_tensors_sees_a_dense_sum():
    """The test above can fail."""
    layer = nn.Linear(8, 6).requires_grad_(False)
    x, values = torch.randn(3, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    with NoteCreated({48}) as created:
        y = nn.functional.linear(x, layer.weight + values)
        assert len(created.kept(layer)) > 0, y.shape
