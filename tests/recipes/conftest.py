"""A tiny real run: backbones with tokenizers, and a task that can be learnt in seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import SCALEPET

COLOURS = {"warm": ["red", "orange", "yellow", "amber"], "cold": ["blue", "cyan", "teal", "navy"]}
FILLERS = ["the", "sky", "is", "very", "a", "wall", "of", "house", "my", "car"]
ROW_COUNTS = {"train": 61, "validation": 23}  # no multiples of any batch


@pytest.fixture(scope="session")
def start(launch_two: Callable[..., list[str]]) -> Callable[[int], list[str]]:
    """``start(2)``: scalepet on so many ranks."""
    return lambda num_ranks: SCALEPET if num_ranks == 1 else launch_two("--module", "scalepet")


@pytest.fixture(scope="session")
def backbones_with_tokenizers(tiny_backbones: Path) -> Path:
    """The tiny backbones, each with a fast word tokenizer beside its weights."""
    import tokenizers
    import transformers

    words = [*FILLERS, *(word for group in COLOURS.values() for word in group), *COLOURS]
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "</s>", "[UNK]", "[CLS]", "[SEP]", *words])}
    for name in ("t5", "t5-gated", "bert"):
        core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
        core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        template = "[CLS] $A [SEP]" if name == "bert" else "$A </s>"
        specials = [(t, vocabulary[t]) for t in ("[CLS]", "[SEP]", "</s>")]
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=specials
        )
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="[PAD]", eos_token="</s>", unk_token="[UNK]"
        ).save_pretrained(tiny_backbones / name)
    return tiny_backbones


@pytest.fixture(scope="session")
def colour_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and validation.jsonl: a sentence with a colour, and if it is warm or cold."""
    folder, generator = tmp_path_factory.mktemp("rows"), random.Random(0)
    for split, num_rows in ROW_COUNTS.items():
        lines = []
        for _ in range(num_rows):
            label = generator.choice(sorted(COLOURS))
            words = generator.choices(FILLERS, k=generator.randint(2, 6))
            words.insert(generator.randint(0, len(words)), generator.choice(COLOURS[label]))
            lines.append(json.dumps({"text": " ".join(words), "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_config(folder: Path, content: dict[str, Any], fields: dict[str, Any]) -> Path:
    """The content with some fields replaced, as YAML beside the folder."""
    for field, value in fields.items():
        nested = isinstance(value, dict) and isinstance(content.get(field), dict)
        nested = nested and "name" not in value  # another method has other options
        content[field] = {**content[field], **value} if nested else value
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def write_run(backbones_with_tokenizers: Path, colour_rows: Path) -> Callable[..., Path]:
    """``write_run(folder, "t5", ...)``: a run in that folder as YAML, with some fields replaced."""

    def write(
        folder: Path, backbone: str = "bert", *, is_text: bool = False, **fields: Any
    ) -> Path:
        content: dict[str, Any] = {
            "output": str(folder),
            "precision": "fp32",
            "backbone": {"path": str(backbones_with_tokenizers / backbone), "dropout": 0.0},
            "task": {
                "kind": "sequence_to_sequence" if is_text else "classification",
                "source": {
                    "path": "json",
                    "files": {s: str(colour_rows / f"{s}.jsonl") for s in ROW_COUNTS},
                },
                "template": "{text}",
                "target": "label",
                "metrics": ["exact_match"] if is_text else ["accuracy", "macro_f1"],
                "max_source_length": 10,
                "max_target_length": 4,
            },
            "method": {"name": "apet", "budget": "20%"},
            "train": {
                "steps": 12,
                "batch_size": 16,
                "micro_batch_size": 8,
                "evaluate_every": 4,
                "log_every": 1,
                "learning_rate": 0.02,
                "head_learning_rate": 0.02,
            },
        }
        return write_config(folder, content, fields)

    return write


STREAM_WORDS = ["red", "orange", "yellow", "blue", "cyan", "teal"]


@pytest.fixture(scope="session")
def stream_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and validation.jsonl: a sentence with a colour, and which one it is."""
    folder, generator = tmp_path_factory.mktemp("stream"), random.Random(1)
    for split, num_of_each in {"train": 11, "validation": 4}.items():
        lines = []
        for word in STREAM_WORDS * num_of_each:
            words = generator.choices(FILLERS, k=generator.randint(2, 6))
            words.insert(generator.randint(0, len(words)), word)
            lines.append(json.dumps({"text": " ".join(words), "label": word}))
        generator.shuffle(lines)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def write_stream(backbones_with_tokenizers: Path, stream_rows: Path) -> Callable[..., Path]:
    """``write_stream(folder, "t5", ...)``: a stream of three experiences as YAML, with some fields
    replaced.
    """

    def write(folder: Path, family: str = "bert", **fields: Any) -> Path:
        content: dict[str, Any] = {
            "output": str(folder),
            "precision": "fp32",
            "backbone": {"path": str(backbones_with_tokenizers / family), "dropout": 0.0},
            "stream": {
                "num_tasks": 3,
                "task": {
                    "kind": "classification",
                    "source": {
                        "path": "json",
                        "files": {s: str(stream_rows / f"{s}.jsonl") for s in ROW_COUNTS},
                    },
                    "template": "{text}",
                    "target": "label",
                    "max_source_length": 10,
                    "max_target_length": 4,
                },
            },
            "method": {"name": "lora", "r": 2, "parts": ["k", "v"]},
            "lae": {"freeze_epochs": 0 if "t5" in family else 1, "offline": [{"travel": 0.4}]},
            "train": {
                "epochs": 3,
                "batch_size": 8,
                "micro_batch_size": 2,
                "log_every": 1,
                "learning_rate": 0.02,
                "head_learning_rate": 0.02,
            },
        }
        return write_config(folder, content, fields)

    return write


@pytest.fixture(scope="session")
def study_content(
    backbones_with_tokenizers: Path, colour_rows: Path
) -> Callable[..., dict[str, Any]]:
    """``study_content(folder, methods={...})``: a study of four cells in that folder, changed."""

    def study(folder: Path, **fields: Any) -> dict[str, Any]:
        files = {split: str(colour_rows / f"{split}.jsonl") for split in ("train", "validation")}
        task = {
            "kind": "classification",
            "source": {
                "path": "json",
                "files": files,
                "splits": {"eval": "validation[:12]", "test": "validation[12:]"},
            },
            "template": "{text}",
            "target": "label",
            "max_source_length": 10,
            "max_target_length": 4,
        }
        return {
            "output": str(folder),
            "base": {
                "precision": "fp32",
                "deepspeed": "zero0",
                "train": {"steps": 6, "batch_size": 8, "evaluate_every": 3, "log_every": 1},
            },
            "backbones": {"tiny": {"path": str(backbones_with_tokenizers / "bert")}},
            "tasks": {"colour": task},
            "rate_factors": [0.5, 2.0],
            "position_seeds": [0, 1],
            "methods": {
                "apet": {
                    "method": {"name": "apet"},
                    "budgets": [50],
                    "matches": ["lora"],
                    "learning_rate": {10: 0.1, 1000: 0.02},
                },
                "lora": {"method": {"name": "lora", "r": 2}, "learning_rate": 0.01},
                "head": {"method": {"name": "head"}, "learning_rate": 0.01},
            },
            **fields,
        }

    return study
