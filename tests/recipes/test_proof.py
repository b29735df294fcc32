"""A method that does nothing stops the run in its first steps, and says what does nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scalepet.backbones import override
from scalepet.errors import ScalepetError
from scalepet.pet import HeadOnly
from scalepet.recipes.proof import Proof


@dataclass
class Runner:
    """What ``Proof`` sees of an engine: a model that doubles its input, and two trained tensors."""

    module: Any = field(default_factory=lambda: nn.Linear(2, 2, bias=False))
    trained: dict[str, Tensor] = field(
        default_factory=lambda: {"gain": torch.ones(2), "row": torch.zeros(3)}
    )

    def each_trained(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.trained.items()


class Sparse(HeadOnly):
    def may_rest(self, name: str) -> bool:
        return name == "row"


def loss_sum(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    return model(tensors["x"]).sum()


def make_proof(method: Any = None, precision: Any = "fp32") -> tuple[Proof, Runner]:
    runner = Runner()
    override(runner.module, lambda inner, x: inner(x) * runner.trained["gain"])
    x = {"x": torch.ones(1, 2)}
    return Proof(method or HeadOnly(), runner, loss_sum, x, precision), runner  # type: ignore[arg-type]


def move(runner: Runner, *names: str, by: float = 1.0) -> None:
    for name in names:
        runner.trained[name] = runner.trained[name] + by


def test_what_moves_and_has_an_effect_goes_on() -> None:
    proof, runner = make_proof()
    move(runner, "gain", "row")
    for step in (1, 2, 3):
        proof.look(step)


def test_a_tensor_that_does_not_move_is_named() -> None:
    proof, runner = make_proof()
    move(runner, "gain")
    proof.look(1)
    with pytest.raises(ScalepetError, match=r"after 2 steps 1 of 2 trained tensors.*: row"):
        proof.look(2)


def test_what_may_rest_does_not_stop_a_run_unless_nothing_moves() -> None:
    proof, runner = make_proof(Sparse())
    move(runner, "gain")
    proof.look(2)
    proof, _ = make_proof(Sparse())
    with pytest.raises(ScalepetError, match="not one of 2 trained tensors has moved"):
        proof.look(2)


@pytest.mark.parametrize(("precision", "last"), [("fp32", 2), ("bf16", 128)])
def test_16_bits_have_more_steps_to_show_an_effect(precision: str, last: int) -> None:
    runner = Runner()
    override(runner.module, lambda inner, x: inner(x))  # no effect at all
    x = {"x": torch.ones(1, 2)}
    proof = Proof(HeadOnly(), runner, loss_sum, x, precision)  # type: ignore[arg-type]
    move(runner, "gain", "row")
    for step in range(1, last):
        proof.look(step)
    with pytest.raises(ScalepetError, match=f"after {last} steps the output is, bit for bit"):
        proof.look(last)


def test_a_model_without_overrides_is_judged_by_its_moves_alone() -> None:
    runner = Runner()
    proof = Proof(HeadOnly(), runner, loss_sum, {"x": torch.ones(1, 2)}, "fp32")  # type: ignore[arg-type]
    move(runner, "gain", "row")
    proof.look(2)
