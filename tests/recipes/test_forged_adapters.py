"""Adapters of strangers, whole by their checksums, that hold what scalepet never writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.test_peft import save_random_adapter

from scalepet import engine
from scalepet.errors import ScalepetError
from scalepet.recipes import export_merged, export_peft
from scalepet.recipes.adapter import open_adapter


@pytest.fixture(scope="module")
def adapter(write_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a mask whose positions are saved."""
    folder = tmp_path_factory.mktemp("run") / "run"
    method = {"name": "apet", "budget": 60, "parts": ["q"], "move_every": 3}
    save_random_adapter(write_run(folder, method=method))
    return folder / "adapter"


def forged(adapter: Path, into: Path, *, tensors: Any = None, record: Any = None) -> Path:
    """A copy with other tensors, or another record, and checksums that fit them."""
    found, written = engine.read_folder(adapter)
    (tensors or (lambda _: None))(found)
    (record or (lambda _: None))(written)
    written.pop("checksum")
    engine.write_folder(into, tensors=found, record=written)
    return into


def values_of(tensors: Any) -> str:
    return next(name for name in tensors if name.endswith("_values"))


def positions_of(tensors: Any) -> str:
    return next(name for name in tensors if name.endswith("_positions"))


def put(name: str, change: Any) -> Any:
    def at(tensors: Any) -> None:
        key = {"values": values_of, "positions": positions_of}.get(name, lambda _: name)(tensors)
        tensors[key] = change(tensors[key])

    return at


def with_one(value: float) -> Any:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[0] = value
        return changed

    return change


TENSORS: dict[str, tuple[Any, str]] = {
    "a nan": (put("values", with_one(float("nan"))), "1 of .* numbers that are nan or inf"),
    "an inf in the head": (put("classifier.bias", with_one(float("inf"))), "classifier.bias has 1"),
    "whole numbers": (put("classifier.weight", lambda t: t.int()), "weight is int32; allowed"),
    "another shape": (put("classifier.weight", lambda t: t.T), r"is \(24, 2\) in the adapter, \(2"),
    "one value too few": (put("values", lambda t: t[1:]), r"_values is \(\d+,\) in the adapter"),
    "no head": (lambda tensors: tensors.pop("classifier.bias"), "classifier.bias is None in"),
    "more": (lambda tensors: tensors.update(extra=torch.ones(2)), r"extra is \(2,\) in the"),
    "a pooler": (
        lambda tensors: tensors.update({"bert.encoder.layer.0.output.dense.bias": torch.ones(24)}),
        r"dense.bias is \(24,\) in the adapter, None",
    ),
    "positions as numbers": (put("positions", lambda t: t.float()), "allowed: a row of bytes"),
    "positions behind the end": (
        put("positions", lambda t: torch.full_like(t, 255)),
        "the saved positions of a mask",
    ),
}


@pytest.mark.parametrize(("change", "words"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_are_refused(change, words, adapter, tmp_path):
    folder = forged(adapter, tmp_path / "forged", tensors=change)
    with pytest.raises(ScalepetError, match=words):
        open_adapter(folder, overrides={})


def test_nothing_is_exported_of_what_is_not_finite(adapter, tmp_path):
    folder = forged(adapter, tmp_path / "forged", tensors=put("values", with_one(float("nan"))))
    for export in (export_merged, export_peft):
        with pytest.raises(ScalepetError, match="nan or inf"):
            export(folder, tmp_path / "into", overrides={})
        assert not (tmp_path / "into").exists()


RECORDS: dict[str, tuple[Any, str]] = {
    "no fields": ({"config": "../../etc"}, "config is '../../etc'; allowed"),
    "no number": ({"config": float("nan")}, "config is nan; allowed"),
    "labels that are none": ({"labels": 0}, "labels is 0; allowed"),
    "labels of fields": ({"labels": [{"a": 1}, "b"]}, "labels is .*; allowed"),
    "no labels": ({"labels": []}, r"labels is \[\]; allowed: the classes"),
    "one name": ({"whole": "classifier"}, "whole is 'classifier'; allowed"),
    "no tensor": ({"whole": ["nobody"]}, "nobody is no tensor of the backbone"),
    "no method": ({"method": []}, "was trained as"),
    "no format": ({"format": {}}, "format {}"),
}


@pytest.mark.parametrize(("change", "words"), RECORDS.values(), ids=RECORDS)
def test_records_of_other_types_are_refused(change, words, adapter, tmp_path):
    folder = forged(adapter, tmp_path / "forged", record=lambda record: record.update(change))
    with pytest.raises(ScalepetError, match=words):
        open_adapter(folder, overrides={})


@pytest.mark.parametrize(
    ("name", "value"),
    [("train.learning_rate", 1e300), ("train.epochs", 1e300), ("train.weight_decay", 1e300)],
)
def test_numbers_beyond_all_ranges_are_refused(name, value, adapter, tmp_path):
    section, _, field = name.partition(".")
    folder = forged(
        adapter,
        tmp_path / "forged",
        record=lambda record: record["config"][section].update({field: value}),
    )
    with pytest.raises(ScalepetError, match=rf"{name}: 1e\+300; allowed: .* to below 1e\+12"):
        open_adapter(folder, overrides={})


def test_an_adapter_of_before_there_were_biases_stays_as_it_is(write_run, tmp_path):
    """0.1 wrote no such option, and picked among tensors without them."""
    method = {"name": "released", "budget": 6000}
    then = {**method, "biases": False}
    save_random_adapter(write_run(tmp_path / "run", "t5-gated", method=then))

    def forget(record):
        record["config"]["method"].pop("biases")
        for part in record["method"]["methods"]:
            part["options"].pop("biases")

    folder = forged(tmp_path / "run" / "adapter", tmp_path / "old", record=forget)
    old = open_adapter(folder, overrides={})
    assert not any("bias_delta" in name for name in old.tensors)
    save_random_adapter(write_run(tmp_path / "new", "t5-gated", method=method))
    new = open_adapter(tmp_path / "new", overrides={})
    assert any("bias_delta" in name for name in new.tensors)


def test_a_tokenizer_with_a_bad_expression_is_refused(adapter, backbones_with_tokenizers, tmp_path):
    place = tmp_path / "tokenizer"
    place.mkdir()
    for file in backbones_with_tokenizers.glob("bert/tokenizer*"):
        shutil.copy(file, place)
    content = json.loads((place / "tokenizer.json").read_text())
    pattern = {"Regex": "(?<"}
    content["normalizer"] = {"type": "Replace", "pattern": pattern, "content": ""}
    (place / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ScalepetError, match=r"backbone.tokenizer: none can be loaded"):
        open_adapter(adapter, overrides={"backbone": {"tokenizer": str(place)}})
