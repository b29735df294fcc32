"""Activations that are kept and activations that are run again give the same training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

NAMES = ("t5", "t5_own_head", "bert")
SOME_WEIGHTS = {
    "t5": (
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "decoder.block.1.layer.1.EncDecAttention.v.weight",
    ),
    "bert": (
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.1.output.dense.weight",
    ),
}
SOME_WEIGHTS["t5_own_head"] = SOME_WEIGHTS["t5"]


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_activations_change_no_loss_and_no_gradient(
    load: Any, tensors: dict[str, torch.Tensor], name: str
) -> None:
    if name == "bert":
        tensors["labels"] = torch.tensor([0, 2, 1])
    results = []
    for checkpoint_activations in (False, True):
        loaded, _ = load(name, dropout=0.0, checkpoint_activations=checkpoint_activations)
        model = loaded.model.train()
        trained = [dict(model.named_parameters())[weight] for weight in SOME_WEIGHTS[name]]
        for parameter in trained:
            parameter.requires_grad_(True)
        loss = model(**tensors).loss
        loss.backward()
        results.append((loss.detach(), *(parameter.grad for parameter in trained)))
    for plain, checkpointed in zip(*results, strict=True):
        largest = float(plain.abs().max())
        assert largest > 0
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_activations_are_run_again_in_backward(
    load: Any, tensors: dict[str, torch.Tensor], name: str
) -> None:
    if name == "bert":
        tensors["labels"] = torch.tensor([0, 2, 1])
    weight = SOME_WEIGHTS[name][0]
    num_calls = {}
    for checkpoint_activations in (False, True):
        loaded, _ = load(name, checkpoint_activations=checkpoint_activations)
        model = loaded.model.train()
        calls: list[int] = []
        owner = model.get_submodule(weight.rsplit(".", 1)[0])
        owner.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        dict(model.named_parameters())[weight].requires_grad_(True)
        model(**tensors).loss.backward()
        num_calls[checkpoint_activations] = len(calls)
    assert num_calls == {False: 1, True: 2}
