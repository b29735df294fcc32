from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scalepet.backbones import (
    bare,
    detach,
    overridden_modules,
    override,
    recording_additions,
)

X = torch.tensor([[1.0, -2.0, 3.0]])


class Shift(nn.Module):
    """A module whose forward takes an option."""

    def forward(self, x: Tensor, by: float = 1.0) -> Tensor:
        return x + by


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), Shift(), nn.Linear(3, 2))


def doubled(inner: Any, *args: Any, **kwargs: Any) -> Any:
    return 2 * inner(*args, **kwargs)


def plus_one(inner: Any, *args: Any, **kwargs: Any) -> Any:
    return 1 + inner(*args, **kwargs)


def test_an_override_sees_what_the_module_computed_before(model: Any) -> None:
    seen = []

    def forward(inner: Any, x: Tensor, *, by: float = 5.0) -> Tensor:
        seen.append((x, by))
        output: Tensor = inner(x, by=by)
        return output

    override(model[1], forward)
    assert torch.equal(model[1](X), X + 5)
    assert torch.equal(model[1](X, by=7.0), X + 7)
    assert [by for _, by in seen] == [5.0, 7.0]
    assert overridden_modules(model) == [model[1]]


def test_overrides_pile_up_and_the_last_one_is_called_first(model: Any) -> None:
    override(model[1], doubled)
    assert torch.equal(model[1](X), 2 * (X + 1))
    override(model[1], plus_one)
    assert torch.equal(model[1](X), 2 * (X + 1) + 1)
    override(model[1], doubled)
    assert torch.equal(model[1](X), 2 * (2 * (X + 1) + 1))
    assert overridden_modules(model) == [model[1]]


def test_an_overridden_module_keeps_its_class_names_and_signature(model: Any) -> None:
    names, signature = list(model.state_dict()), inspect.signature(model[1].forward)
    for module in model:
        override(module, doubled)
    assert [type(module) for module in model] == [nn.Linear, Shift, nn.Linear]
    assert list(model.state_dict()) == names
    assert inspect.signature(model[1].forward) == signature


def test_hooks_run_around_the_override(model: Any) -> None:
    outputs = []
    model[1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    override(model[1], doubled)
    model[1](X)
    assert torch.equal(outputs[0], 2 * (X + 1))


def test_an_override_of_one_instance_leaves_the_others_alone(model: Any) -> None:
    override(model[0], doubled)
    assert "forward" not in vars(nn.Linear(3, 3))
    assert overridden_modules(nn.Sequential(nn.Linear(3, 3))) == []


def test_bare_gives_the_plain_output_and_puts_everything_back(model: Any) -> None:
    plain = model(X)
    override(model[0], doubled)
    override(model[2], plus_one)
    override(model[2], doubled)
    override(model, plus_one)
    changed = model(X)
    assert not torch.allclose(changed, plain)
    with bare(model):
        assert overridden_modules(model) == []
        assert torch.equal(model(X), plain)
        with bare(model):
            assert torch.equal(model(X), plain)
        assert torch.equal(model(X), plain)
    assert torch.equal(model(X), changed)
    assert set(overridden_modules(model)) == {model, model[0], model[2]}


def test_bare_puts_everything_back_after_an_error(model: Any) -> None:
    override(model[0], doubled)
    changed = model(X)
    with pytest.raises(RuntimeError, match="inside"), bare(model):
        raise RuntimeError("inside")
    assert torch.equal(model(X), changed)


def test_bare_gradients_do_not_reach_what_was_added(model: Any) -> None:
    scale = nn.Parameter(torch.ones(3))
    model[0].register_parameter("scale", scale)
    override(model[0], lambda inner, x: inner(x) * scale)
    with bare(model):
        model(X).sum().backward()
    assert scale.grad is None
    model(X).sum().backward()
    assert scale.grad is not None


def add_things(model: Any) -> None:
    """Modules (one in an old module, one in a new one), parameters and buffers; overrides."""
    model[0].register_parameter("delta", nn.Parameter(torch.ones(3)))
    model[0].register_buffer("places", torch.arange(3))
    model[0].register_buffer("hidden", torch.ones(3), persistent=False)
    model[2].bottleneck = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 3))
    model[1].extra = nn.ParameterDict({"prompt": nn.Parameter(torch.zeros(4, 3))})
    override(model[0], lambda inner, x: inner(x) + model[0].delta)
    override(model[2], lambda inner, x: inner(x + model[2].bottleneck(x)))


def members(model: nn.Module) -> tuple[list[str], list[str], list[str]]:
    return (
        [name for name, _ in model.named_modules()],
        [name for name, _ in model.named_parameters()],
        [name for name, _ in model.named_buffers()],
    )


def test_what_was_added_is_recorded_and_taken_off(model: Any) -> None:
    model[1].register_buffer("of_its_own", torch.zeros(1))
    plain, before, state = model(X), members(model), list(model.state_dict())
    with recording_additions(model) as added:
        assert added == []
        add_things(model)
    named = {(owner, name) for owner, name in added}
    assert {
        (model[0], "delta"),
        (model[0], "places"),
        (model[0], "hidden"),
        (model[2], "bottleneck"),
        (model[1], "extra"),
    } <= named
    assert not named & {(model, "0"), (model[0], "weight"), (model[1], "of_its_own")}
    assert not torch.allclose(model(X), plain)
    detach(model, added)
    assert members(model) == before
    assert list(model.state_dict()) == state
    assert overridden_modules(model) == []
    assert torch.equal(model(X), plain)


def test_what_was_taken_off_can_be_added_again(model: Any) -> None:
    plain = model(X)
    changed = []
    for _ in range(2):
        torch.manual_seed(1)
        with recording_additions(model) as added:
            add_things(model)
        changed.append(model(X))
        detach(model, added)
    assert torch.equal(changed[0], changed[1])
    assert torch.equal(model(X), plain)


def test_a_tied_addition_leaves_both_of_its_owners(model: Any) -> None:
    shared = nn.Parameter(torch.ones(3))
    with recording_additions(model) as added:
        model[0].delta = model[2].delta = shared
    assert added == [(model[0], "delta"), (model[2], "delta")]
    detach(model, added)
    assert not hasattr(model[0], "delta")
    assert not hasattr(model[2], "delta")


def test_nothing_added_is_nothing_recorded(model: Any) -> None:
    with recording_additions(model) as added:
        override(model[0], doubled)
    assert added == []
