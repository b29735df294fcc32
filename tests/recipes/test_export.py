"""A merged folder says of itself what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers
from recipes.test_peft import save_random_adapter

from scalepet import build
from scalepet.config import read_config
from scalepet.recipes import export_merged


@pytest.fixture
def changed(backbones_with_tokenizers: Path, tmp_path: Path):
    """``changed("bert", "config.json", field=...)``: a copy of a backbone with other fields."""

    def change(name: str, file: str, **fields: object) -> Path:
        shutil.copytree(backbones_with_tokenizers / name, tmp_path / name)
        path = tmp_path / name / file
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **fields}))
        return tmp_path / name

    return change


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_classes_of_a_merged_folder_add_up_to_one(kind, changed, write_run, tmp_path):
    """A pipeline of transformers asks the config whether a row has one class."""
    backbone = changed("bert", "config.json", problem_type=kind)
    path = write_run(tmp_path / "run", str(backbone))
    save_random_adapter(path)
    export_merged(tmp_path / "run", tmp_path / "merged", overrides={})
    pipe = transformers.pipeline("text-classification", str(tmp_path / "merged"), device="cpu")
    (answers,) = pipe(["the sky is red"], top_k=None)
    assert {answer["label"] for answer in answers} == {"cold", "warm"}
    assert sum(answer["score"] for answer in answers) == pytest.approx(1.0, abs=1e-5)


def test_how_texts_were_written_is_kept_and_said(changed, write_run, tmp_path):
    settings = {"no_repeat_ngram_size": 2, "repetition_penalty": 5.0}
    backbone = changed("t5", "generation_config.json", **settings)
    path = write_run(tmp_path / "run", str(backbone), is_text=True)
    save_random_adapter(path)
    export_merged(tmp_path / "run", tmp_path / "merged", overrides={})
    kept, before = (
        (folder / "generation_config.json").read_bytes()
        for folder in (tmp_path / "merged", backbone)
    )
    assert kept == before
    config = read_config(path)
    (warning,) = build.plan_run(config, config.task).warnings
    assert "(no_repeat_ngram_size: 2, repetition_penalty: 5.0) is not followed" in warning
    assert "evaluate.num_beams and task.max_target_length" in warning
