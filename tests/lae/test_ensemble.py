from __future__ import annotations

import torch

from scalepet.backbones import EnsembleTensor, members_of
from scalepet.lae import experts, vote


def test_the_largest_probability_decides_as_published() -> None:
    online = torch.tensor([[2.0, 0.0, 0.0], [0.1, 0.2, 0.0]])
    offline = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 3.0]])
    together = vote([online, offline], "max")
    expected = torch.maximum(online.softmax(-1), offline.softmax(-1))
    torch.testing.assert_close(together, expected)
    assert together.argmax(-1).tolist() == [0, 2]
    mean = vote([online, offline], "mean")
    torch.testing.assert_close(mean, (online.softmax(-1) + offline.softmax(-1)) / 2)


def test_label_words_are_normalised_over_the_classes() -> None:
    scores = torch.tensor([[-20.0, -22.0]])
    assert torch.equal(vote([scores], "max"), vote([scores + 7.0], "max"))


def test_parameters_stand_for_all_experts_meanwhile() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    numbers = [{"1.weight": torch.full((2, 3), float(n)), "1.bias": torch.zeros(2)} for n in (1, 2)]
    x = torch.randn(4, 3)
    with torch.no_grad():
        hidden, before = model[0](x), model(x)
        with experts(model, numbers, device=torch.device("cpu")):
            assert type(model[0](x)) is torch.Tensor  # below the first that differs, once for all
            y = model(x)
        assert isinstance(y, EnsembleTensor)
        for one, n in zip(members_of(y), (1, 2), strict=True):
            torch.testing.assert_close(one, hidden.sum(1, keepdim=True).expand(-1, 2) * n)
        assert torch.equal(model(x), before)


def test_tied_parameters_are_both_replaced() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    numbers = [{"0.weight": torch.eye(3) * n} for n in (1.0, 2.0)]
    with torch.no_grad(), experts(model, numbers, device=torch.device("cpu")):
        assert isinstance(vars(model[1])["weight"], EnsembleTensor)
