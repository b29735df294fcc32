"""Whole runs of tiny models, one after the other in one process: their losses, and what stays on
the device after each.
"""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console

from scalepet import backbones, engine
from scalepet.config import read_config, read_stream_config
from scalepet.errors import ConfigError
from scalepet.recipes import finetune, learn_stream

RUNS: dict[str, dict[str, Any]] = {
    "t5 apet zero0": {"model": "t5", "method": {"name": "apet", "budget": "5%"}},
    "t5 apet zero3": {"model": "t5", "stage": "zero3", "method": {"name": "apet", "budget": "5%"}},
    "t5 lora zero2": {"model": "t5", "stage": "zero2", "method": {"name": "lora", "r": 2}},
    "t5 prefix bf16": {"model": "t5", "precision": "bf16", "method": {"name": "prefix"}},
    "bert apet offload": {
        "model": "bert",
        "stage": "zero3_offload_cpu",
        "method": {"name": "apet", "budget": "5%", "move_every": 2},
    },
    "bert adapter zero3": {"model": "bert", "stage": "zero3", "method": {"name": "adapter"}},
    "bert bitfit bf16": {
        "model": "bert",
        "stage": "zero3",
        "precision": "bf16",
        "method": {"name": "bitfit"},
    },
    "bert ia3 fp16": {"model": "bert", "precision": "fp16", "method": {"name": "ia3"}},
}
"""Every stage, precision and way of a mask; the stream comes after them."""

STREAM = "bert stream"
_WORDS = ("red", "amber", "blue", "navy")
_FILLERS = ("the", "sky", "is", "very", "a", "wall", "of", "house", "my", "car")
_SPECIALS = ("[PAD]", "</s>", "[UNK]", "[CLS]", "[SEP]")


class Ran(NamedTuple):
    """What a run left behind.

    Attributes:
        precision: fp32 in place of one that the device cannot do.
        losses: of every step.
        kept_bytes: on the device, more than before the first run; None on a CPU.
        error: why it did not come to its end; None where it did.
    """

    name: str
    precision: str
    losses: list[float]
    kept_bytes: int | None
    error: str | None


def tiny_runs(folder: Path) -> Iterator[Ran]:
    """Runs them all, one after the other, as each is asked for; one that fails takes nothing from
    the others. The process is in a group by then.

    Args:
        folder: an empty one, for their files.
    """
    _write_inputs(folder)
    before = _device_bytes()
    for number, (name, fields) in enumerate(RUNS.items()):
        output = folder / f"run-{number}"
        precision = _possible(fields.get("precision", "fp32"))
        content = {
            **_fields(folder, output, fields["model"]),
            "precision": precision,
            "deepspeed": fields.get("stage", "zero0"),
            "task": _task(folder),
            "method": fields["method"],
            "train": {"steps": 6, **_TRAIN, "evaluate_every": 6},
        }
        error = _error_of(partial(_finetune, _written(output, content)))
        yield Ran(name, precision, _losses(output), _kept_since(before), error)
    output = folder / "stream"
    content = {
        **_fields(folder, output, "bert"),
        "precision": "fp32",
        "stream": {"num_tasks": 2, "task": _task(folder)},
        "method": {"name": "lora", "r": 2, "parts": ["k", "v"]},
        "lae": {"freeze_epochs": 1, "offline": [{"travel": 0.4}]},
        "train": {"epochs": 2, **_TRAIN},
    }
    error = _error_of(partial(_learn_stream, _written(output, content)))
    yield Ran(STREAM, "fp32", _losses(output), _kept_since(before), error)


def _finetune(config: Path) -> None:
    finetune(read_config(config), resume=False, console=Console(quiet=True))


def _learn_stream(config: Path) -> None:
    for _ in learn_stream(read_stream_config(config), resume=False, console=Console(quiet=True)):
        pass


def _error_of(run: Callable[[], None]) -> str | None:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


_TRAIN = {
    "batch_size": 8,
    "micro_batch_size": 4,
    "log_every": 1,
    "learning_rate": 0.02,
    "head_learning_rate": 0.02,
}


def _possible(precision: Any) -> str:
    try:
        engine.check_precision(precision)
    except ConfigError:
        return "fp32"
    return str(precision)


def _fields(folder: Path, output: Path, model: str) -> dict[str, Any]:
    return {"output": str(output), "backbone": {"path": str(folder / model), "dropout": 0.0}}


def _task(folder: Path) -> dict[str, Any]:
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    return {
        "kind": "classification",
        "source": {"path": "json", "files": files},
        "template": "{text}",
        "target": "label",
        "max_source_length": 10,
        "max_target_length": 4,
    }


def _written(output: Path, content: dict[str, Any]) -> Path:
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _losses(output: Path) -> list[float]:
    path = output / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]


def _device_bytes() -> int | None:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else None


def _kept_since(before: int | None) -> int | None:
    gc.collect()
    now = _device_bytes()
    return None if now is None or before is None else now - before


def _write_inputs(folder: Path) -> None:
    """A T5 and a BERT with a tokenizer of a few words, and rows of them."""
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    _write_model(folder / "t5", backbones.t5_config(vocab_size=64, **shape).to_dict())
    bert = {
        "model_type": "bert",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
    }
    _write_model(folder / "bert", bert)
    generator = random.Random(0)
    for split, num_rows in (("train", 48), ("validation", 8)):
        rows = []
        for index in range(num_rows):
            label = _WORDS[index % len(_WORDS)]
            words = [*generator.choices(_FILLERS, k=4), label]
            generator.shuffle(words)
            rows.append(json.dumps({"text": " ".join(words), "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """One of the few words of the rows, in a new folder."""
    folder.mkdir()
    for name, content in _tokenizer().items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _write_model(folder: Path, shape: dict[str, Any]) -> None:
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    config = backbones.read_model_config(backbones.Backbone(str(folder), random_start=True))
    model: Any = backbones.family_of(config).model_class(config)._from_config(config)
    model.save_pretrained(folder)


def _tokenizer() -> dict[str, Any]:
    """The two files of a tokenizer that knows whole words."""
    vocabulary = {word: place for place, word in enumerate((*_SPECIALS, *_FILLERS, *_WORDS))}
    end = vocabulary["</s>"]
    core = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [end], "tokens": ["</s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "eos_token": "</s>",
        "unk_token": "[UNK]",
    }
    return {"tokenizer": core, "tokenizer_config": about}
