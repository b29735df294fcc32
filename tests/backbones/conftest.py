"""Tiny backbones on disk, as a hub has them, and a tokenizer for each kind of file."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from scalepet.backbones import Backbone, Loaded, load_model, quiet_transformers, read_model_config
from scalepet.backbones.families import own_head_t5

T5_SHAPE = {
    "vocab_size": 48,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
}
BERT_SHAPE = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``t5`` (v1.0: tied, ReLU), ``t5_own_head`` (v1.1: its own head, gated), ``bert`` and
    ``bert_without_pooler``.
    """
    quiet_transformers(show_progress=False)
    root = tmp_path_factory.mktemp("backbones")
    v1_1 = transformers.T5Config(
        **T5_SHAPE, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
    torch.manual_seed(0)
    models = {
        "t5": transformers.T5ForConditionalGeneration(transformers.T5Config(**T5_SHAPE)),
        "t5_own_head": own_head_t5()(v1_1),
        "bert": transformers.BertModel(transformers.BertConfig(**BERT_SHAPE)),
        "bert_without_pooler": transformers.BertModel(
            transformers.BertConfig(**BERT_SHAPE), add_pooling_layer=False
        ),
    }
    for name, model in models.items():
        for parameter in model.parameters():  # zero biases and unit norms hide mistakes
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
    return root


Load = Callable[..., tuple[Loaded, Any]]


@pytest.fixture
def load(folders: Path) -> Load:
    """``load("t5", dropout=0.0) -> (Loaded in fp32, its config)``."""

    def load_one(name: str, **options: Any) -> tuple[Loaded, Any]:
        if name.startswith("bert"):
            options = {"num_classes": 3, **options}
        backbone = Backbone(str(folders / name), **options)
        config = read_model_config(backbone)
        return load_model(backbone, config, dtype=torch.float32), config

    return load_one


@pytest.fixture
def changed_folder(folders: Path, tmp_path: Path) -> Any:
    """``changed_folder("t5", {name: tensor or None})``: a copy of a folder with other tensors."""

    def change(name: str, tensors: dict[str, Tensor | None]) -> Path:
        folder = tmp_path / f"changed_{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folders / name, folder)
        state = load_file(folder / "model.safetensors")
        for tensor_name, tensor in tensors.items():
            state.pop(tensor_name, None)
            if tensor is not None:
                state[tensor_name] = tensor
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Three rows for a T5, two of them with padding, the last with an ignored target alone."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    labels = torch.tensor([[9, 8, 7, 1], [5, 1, -100, -100], [-100] * 4])
    ids = torch.randint(2, 48, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture(scope="session")
def spiece() -> bytes:
    """A SentencePiece model with the token numbers of T5."""
    words = ["the quick brown fox jumps over the lazy dog", "hello world", "good bad film"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()
