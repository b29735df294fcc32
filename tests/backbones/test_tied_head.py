"""Whether the output projection of a T5 is the embedding (v1.0) or a weight of its own (v1.1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from scalepet.backbones import Backbone, load_model, read_model_config

UNDER_ZERO_3 = Path(__file__).with_name("own_head_under_zero3.py")


def load_model_of(path: Path, **options: Any) -> Any:
    backbone = Backbone(str(path), **options)
    return load_model(backbone, read_model_config(backbone), dtype=torch.float32).model


def test_an_own_head_stays_its_own_where_numbers_cannot_be_compared(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ZeRO-3 transformers compares empty placeholders when it asks whether to tie."""
    monkeypatch.setattr(
        transformers.modeling_utils, "_tied_params_are_equal", lambda source, target: True
    )
    model = load_model_of(folders / "t5_own_head")
    saved = load_file(folders / "t5_own_head" / "model.safetensors")
    assert torch.equal(model.lm_head.weight, saved["lm_head.weight"])
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight
    assert model.encoder.embed_tokens.weight is model.shared.weight


def has_own_head(model: Any) -> bool:
    return "lm_head.weight" in dict(model.named_parameters())


def test_the_weights_say_what_is_tied_and_not_the_config(
    folders: Path, changed_folder: Any
) -> None:
    """transformers writes ``tie_word_embeddings: true`` into every config.json of a T5."""
    for name in ("t5", "t5_own_head"):
        assert json.loads((folders / name / "config.json").read_text())["tie_word_embeddings"]
    assert not has_own_head(load_model_of(folders / "t5"))
    assert has_own_head(load_model_of(folders / "t5_own_head"))

    headless = changed_folder("t5_own_head", {"lm_head.weight": None})
    assert not has_own_head(load_model_of(headless))
    head = torch.randn(48, 16)
    with_a_head = load_model_of(changed_folder("t5", {"lm_head.weight": head}))
    assert has_own_head(with_a_head)
    assert torch.equal(with_a_head.lm_head.weight, head)
    embedding = load_file(folders / "t5" / "model.safetensors")["shared.weight"]
    assert not has_own_head(
        load_model_of(changed_folder("t5", {"lm_head.weight": embedding.clone()}))
    )


@pytest.mark.distributed
def test_an_own_head_stays_its_own_under_zero_3(folders: Path, run_ranks: Any) -> None:
    folder = folders / "t5_own_head"
    (output,) = run_ranks(UNDER_ZERO_3, str(folder), num_ranks=1, timeout_seconds=120)
    sums = json.loads(output.split("SUMS", 1)[1].splitlines()[0])
    saved = load_file(folder / "model.safetensors")
    assert sums["head"] == pytest.approx(saved["lm_head.weight"].double().sum().item())
    assert sums["embedding"] == pytest.approx(saved["shared.weight"].double().sum().item())
    assert abs(sums["head"] - sums["embedding"]) > 1e-3
