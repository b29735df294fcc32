"""Which tables of a T5 are one tensor, and which are weights of their own: as in v1.0, where the
output projection is the embedding, in v1.1, where it is not, or in any other way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from scalepet.backbones import Backbone, checkpoint, load_model, read_model_config, sketch_sites
from scalepet.backbones.families import T5_TABLES
from scalepet.errors import ConfigError

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


SHARED, ENCODER, DECODER, HEAD = T5_TABLES

STORED: dict[str, Mapping[str, int]] = {
    "all one, told once": {SHARED: 1},
    "all one, told four times": {SHARED: 1, ENCODER: 1, DECODER: 1, HEAD: 1},
    "all one, under the head's name": {HEAD: 1},
    "a head": {SHARED: 1, HEAD: 2},
    "a head, the table under the encoder's name": {ENCODER: 1, HEAD: 2},
    "a head, the table under the decoder's name": {DECODER: 1, HEAD: 2},
    "a head, the table under two names": {ENCODER: 1, DECODER: 1, HEAD: 2},
    "the head is the table under the decoder's name": {DECODER: 1, HEAD: 1},
    "an encoder's table": {SHARED: 1, ENCODER: 2},
    "a decoder's table and a head": {SHARED: 1, DECODER: 2, HEAD: 3},
    "a decoder's table, the other under the encoder's name": {ENCODER: 1, DECODER: 2},
    "four": {SHARED: 1, ENCODER: 2, DECODER: 3, HEAD: 4},
}
"""Names in the files -> which of several tables stands there."""


@pytest.fixture
def stored(folders: Path, tmp_path: Path) -> Any:
    """``stored(tables, form)``: a folder of a T5 v1.1 that has these tables."""

    def write(tables: Mapping[str, int], form: str) -> Path:
        folder = tmp_path / "stored"
        folder.mkdir()
        config = json.loads((folders / "t5_own_head" / "config.json").read_text())
        del config["scale_decoder_outputs"]
        config |= {"tie_word_embeddings": False}  # as Google has it
        (folder / "config.json").write_text(json.dumps(config))
        state = load_file(folders / "t5_own_head" / "model.safetensors")
        state = {name: tensor for name, tensor in state.items() if name not in T5_TABLES}
        torch.manual_seed(0)
        drawn = {one: torch.randn(48, 16) for one in sorted({*tables.values()})}
        state |= {name: drawn[one] for name, one in tables.items()}
        if form == "bin":
            torch.save(state, folder / "pytorch_model.bin")
            return folder
        state = {name: tensor.clone() for name, tensor in state.items()}
        names = sorted(state)
        files = [names[0::2], names[1::2]] if form == "shards" else [names]
        places = {}
        for number, held in enumerate(files):
            file = f"model-{number}.safetensors" if form == "shards" else "model.safetensors"
            save_file({n: state[n] for n in held}, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(held, file)
        if form == "shards":
            index = json.dumps({"metadata": {}, "weight_map": places})
            (folder / "model.safetensors.index.json").write_text(index)
        return folder

    return write


@pytest.mark.parametrize("form", ["shards", "bin"])
@pytest.mark.parametrize("tables", STORED.values(), ids=STORED)
def test_tables_are_those_of_the_files(tables: Mapping[str, int], form: str, stored: Any) -> None:
    """The reference is transformers, which compares numbers where no rank has placeholders."""
    folder = stored(tables, form)
    plain: Any = transformers.T5ForConditionalGeneration
    expected = plain.from_pretrained(folder)
    model, config = load_model_of(folder), read_model_config(Backbone(str(folder)))
    for name in T5_TABLES:
        assert torch.equal(model.get_parameter(name), expected.get_parameter(name)), name
    found, there = dict(model.named_parameters()), dict(expected.named_parameters())
    assert found.keys() == there.keys()
    assert [site.name for site in sketch_sites(config)] == list(found)


def test_tables_are_those_that_transformers_ties() -> None:
    tied: Any = transformers.T5ForConditionalGeneration._tied_weights_keys
    assert tied == dict.fromkeys((ENCODER, DECODER, HEAD), SHARED)


def test_weights_that_come_late_and_have_other_tables_are_refused(
    stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the hub is planned by its config.json, before its weights are there."""
    backbone = Backbone(str(stored({SHARED: 1, ENCODER: 2, HEAD: 3}, "one file")))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "weight_files", lambda backbone, *, fetch: [])
        config = read_model_config(backbone)
    with pytest.raises(ConfigError, match=r"encoder.embed_tokens.*\['lm_head.weight'\]"):
        load_model(backbone, config, dtype=torch.float32)
    config.own_tables = read_model_config(backbone).own_tables
    load_model(backbone, config, dtype=torch.float32)


@pytest.mark.distributed
def test_tables_are_those_of_the_files_under_zero_3(
    folders: Path, stored: Any, run_ranks: Any
) -> None:
    """Where transformers reads for all ranks, as it does for NVMe."""
    of_files = [folders / "t5_own_head", stored({DECODER: 1, HEAD: 2}, "shards")]
    paths = [str(folder) for folder in of_files]
    (output,) = run_ranks(UNDER_ZERO_3, paths, num_ranks=1, timeout_seconds=120)
    found = json.loads(output.split("SUMS", 1)[1].splitlines()[0])
    for folder, sums in zip(of_files, found, strict=True):
        model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
        expected = [model.get_parameter(name).double().sum().item() for name in T5_TABLES]
        assert sums == pytest.approx(expected)
        assert abs(sums[0] - sums[-1]) > 1e-3
