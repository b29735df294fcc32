"""Operations on ensembles against the same operations on every member by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scalepet.backbones import EnsembleTensor, apart, member_of, members_of


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "sum with a plain tensor": lambda x: draw(4, 6) + x,
    "product of matrices": lambda x: F.linear(draw(2, 6), x, draw(4)),
    "both sides": lambda x: x @ x.transpose(0, 1),
    "views": lambda x: x.view(2, 2, 6).transpose(0, 1).reshape(-1, 3)[1:, None].expand(-1, 4, 3),
    "joined with a plain tensor": lambda x: torch.cat([draw(1, 6), x]),
    "several results": lambda x: x.split(3, dim=1),
    "layer norm": lambda x: F.layer_norm(x, (6,), draw(6), draw(6)),
    "an ensemble as weight": lambda x: F.layer_norm(draw(3, 6), (6,), x[0], x[1]),
    "attention": lambda x: F.scaled_dot_product_attention(
        x[None, None], draw(1, 1, 5, 6), draw(1, 1, 5, 6), attn_mask=draw(1, 1, 4, 5)
    ),
    "another type": lambda x: x.to(torch.bfloat16).float(),
    "in place": lambda x: x.clone().mul_(2.0),
    "masked": lambda x: x.masked_fill(draw(4, 6) > 0, 0.0).softmax(-1),
    "looked up": lambda x: F.embedding(torch.tensor([[0, 3], [1, 1]]), x),
}


@pytest.mark.parametrize("name", OPERATIONS)
@torch.no_grad()
def test_every_member_computes_as_by_itself(name: str) -> None:
    operation, members = OPERATIONS[name], (draw(4, 6, seed=1), draw(4, 6, seed=2))
    found = operation(EnsembleTensor(members))
    for number, member in enumerate(members):
        torch.testing.assert_close(member_of(found, number), operation(member), rtol=0, atol=0)


def test_shape_type_and_device_are_those_of_a_member() -> None:
    ensemble = EnsembleTensor([draw(4, 6).bfloat16(), draw(4, 6, seed=1).bfloat16()])
    assert ensemble.shape == (4, 6) and ensemble.dtype == torch.bfloat16
    assert ensemble.device.type == "cpu" and len(members_of(ensemble)) == 2
    assert "2 x (4, 6)" in repr(ensemble)


def test_a_plain_tensor_is_its_only_member() -> None:
    x = draw(3)
    assert members_of(x) == (x,)


def test_members_that_part_ways_are_no_single_answer() -> None:
    ensemble = EnsembleTensor([torch.tensor(1.0), torch.tensor(2.0)])
    with pytest.raises(AssertionError, match="part ways"):
        ensemble.item()


@pytest.mark.parametrize(
    "write",
    [
        lambda plain, ensemble: plain.copy_(ensemble),
        lambda plain, ensemble: plain.add_(ensemble),
        lambda plain, ensemble: torch.mul(ensemble, 2.0, out=plain),
    ],
)
@torch.no_grad()
def test_an_ensemble_does_not_go_into_a_plain_tensor(write: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="into a plain tensor"):
        write(draw(4, 6), EnsembleTensor([draw(4, 6), draw(4, 6)]))


@torch.no_grad()
def test_ensembles_of_two_sizes_do_not_meet() -> None:
    two, three = (EnsembleTensor([draw(4)] * size) for size in (2, 3))
    with pytest.raises(AssertionError, match="ensembles of . and of . members meet"):
        two + three


def test_functions_that_torch_does_not_know_are_done_apart() -> None:
    def patched(x: Tensor, weight: Tensor) -> Tensor:
        weight.data.view(-1)[0] += 1.0
        y = x @ weight
        weight.data.view(-1)[0] -= 1.0
        return y

    x, weight = EnsembleTensor([draw(2, 3, seed=1), draw(2, 3, seed=2)]), draw(3, 3)
    found = apart(patched)(x, weight)
    for one, member in zip(members_of(found), x.members, strict=True):
        assert torch.equal(one, patched(member, weight))
    assert torch.equal(apart(patched)(draw(2, 3), weight), patched(draw(2, 3), weight))
