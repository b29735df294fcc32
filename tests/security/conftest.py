"""A run whose config holds secrets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from recipes.conftest import (
    backbones_with_tokenizers,
    colour_rows,
    stream_rows,
    study_content,
    write_run,
    write_stream,
)

__all__ = [
    "backbones_with_tokenizers",
    "colour_rows",
    "stream_rows",
    "study_content",
    "write_run",
    "write_stream",
]


@pytest.fixture
def write_secret_run(tiny_backbones: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """``write_secret_run(folder)``: a run in that folder as YAML. HF_TOKEN is in a path and in
    the name of a project, a login in an address, and a key in another one.
    """

    def write(folder: Path) -> Path:
        token = os.environ["HF_TOKEN"]
        content = {
            "output": str(folder),
            "precision": "fp32",
            "backbone": {"path": str(tiny_backbones / "vit")},
            "task": {
                "kind": "image_classification",
                "source": {
                    "path": "csv",
                    "files": {
                        "train": "https://someone:very-secret-word@x.org/a.csv",
                        "validation": f"a/{token}.csv",
                        "test": "https://x.org/a.csv?rows=3&api_key=abcdefgh",
                    },
                },
                "template": "{picture}",
                "picture": {"size": 16},
                "target": "label",
                "labels": ["a", "b"],
            },
            "method": {"name": "apet", "budget": 100},
            "wandb": {"project": f"with {token} in it"},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def write_plain_run(tiny_backbones: Path, tmp_path: Path) -> Callable[..., Path]:
    """``write_plain_run(folder, template="{text}")``: a run without secrets in that folder as
    YAML; its rows are not there.
    """

    import tokenizers
    import transformers

    words = {"[PAD]": 0, "</s>": 1, "[UNK]": 2, "a": 3, "b": 4}
    model = tokenizers.models.WordLevel(words, unk_token="[UNK]")
    vocabulary = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model),
        pad_token="[PAD]",
        eos_token="</s>",
        unk_token="[UNK]",
    )
    vocabulary.save_pretrained(tmp_path / "words")

    def write(folder: Path, *, template: str) -> Path:
        content = {
            "output": str(folder),
            "precision": "fp32",
            "backbone": {
                "path": str(tiny_backbones / "t5"),
                "tokenizer": str(tmp_path / "words"),
            },
            "task": {
                "kind": "classification",
                "source": {"path": "csv", "files": {"train": "a.csv", "validation": "b.csv"}},
                "template": template,
                "target": "label",
                "labels": ["a", "b"],
            },
            "method": {"name": "apet", "budget": 100},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write
