"""A tiny random T5, quantized and laid out as the real package: the way back is known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from scalepet.assets.onnx_t5 import quantized_t5
from scalepet.errors import DataError

WORDS = ["<pad>", "</s>", "<unk>", "▁a", "▁tiny", "▁text"]
SCOPES = {"encoder": "enc", "decoder": "m.decoder", "shared": "m.shared", "lm_head": "m.lm_head"}
EMBEDDINGS = ("shared.weight", "relative_attention_bias.weight")


def scoped(name: str) -> str:
    root, _, rest = name.partition(".")
    return f"{SCOPES[root]}.{rest}"


def tiny_t5() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=2,
        relative_attention_num_buckets=8,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.randn(40, 16))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


class Export:
    """The two graphs of a model; weights of the model become what the graphs can say."""

    def __init__(self, model: T5ForConditionalGeneration) -> None:
        self.initializers: dict[str, list[TensorProto]] = {"encoder": [], "decoder": []}
        self.nodes: dict[str, list[NodeProto]] = {"encoder": [], "decoder": []}
        for index, (name, parameter) in enumerate(model.named_parameters()):
            graph = "encoder" if name.startswith("encoder.") else "decoder"
            if name.endswith("layer_norm.weight"):
                array = parameter.detach().numpy()
                self.initializers[graph].append(numpy_helper.from_array(array, scoped(name)))
            elif name.endswith(EMBEDDINGS):
                parameter.data = self.add(graph, scoped(name), parameter, np.uint8)
                if name == "shared.weight":
                    self.add("encoder", "enc.embed_tokens.weight", parameter, np.uint8)
            else:
                stem = f"onnx::MatMul_{index}"
                parameter.data = self.add(graph, stem, parameter.T, np.int8).T
                node = "/" + scoped(name).removesuffix(".weight").replace(".", "/")
                node = node.replace("/block/", "/block.").replace("/layer/", "/layer.")
                self.nodes[graph].append(
                    helper.make_node(
                        "MatMulInteger",
                        ["x", f"{stem}_quantized", "x_zero_point", f"{stem}_zero_point"],
                        [f"{stem}_output"],
                        name=f"{node}/MatMul_quant",
                    )
                )

    def add(self, graph: str, stem: str, weight: torch.Tensor, dtype: type[Any]) -> torch.Tensor:
        """Store a quantized matrix; returns what it stands for."""
        values = weight.detach().numpy()
        scale = np.float32(np.abs(values).max() / 100)
        zero_point = np.array(130 if dtype is np.uint8 else -7, dtype)
        rounded = np.rint(values / scale).astype(np.int64)
        quantized = (rounded + int(zero_point)).astype(dtype)
        parts: dict[str, NDArray[Any]] = {
            "quantized": quantized,
            "scale": np.array(scale),
            "zero_point": zero_point,
        }
        self.initializers[graph] += [
            numpy_helper.from_array(value, f"{stem}_{part}") for part, value in parts.items()
        ]
        return torch.from_numpy(rounded.astype(np.float32) * scale)

    def save(self, raw: Path) -> None:
        for graph, initializers in self.initializers.items():
            proto = helper.make_graph(self.nodes[graph], graph, [], [], initializers)
            onnx.save(helper.make_model(proto), raw / f"{graph}.onnx")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    raw.mkdir()
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in WORDS], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.enable_truncation(max_length=3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(raw / "tokenizer.json"))
    return raw


def test_from_pretrained_alone_gives_the_model_that_was_exported(raw: Path, folder: Path) -> None:
    model = tiny_t5()
    Export(model).save(raw)
    done = quantized_t5(raw, folder)
    again, report = T5ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = dict(model.named_parameters())
    assert {name for name, _ in again.named_parameters()} == set(expected)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert f"{sum(value.numel() for value in expected.values())} parameters" in done


def test_the_head_is_neither_tied_nor_scaled(raw: Path, folder: Path) -> None:
    model = tiny_t5()
    Export(model).save(raw)
    quantized_t5(raw, folder)
    again = T5ForConditionalGeneration.from_pretrained(folder).eval()
    inputs = {
        "input_ids": torch.tensor([[3, 4, 5, 1]]),
        "decoder_input_ids": torch.tensor([[0, 7, 8]]),
    }
    with torch.no_grad():
        output = again(**inputs, output_hidden_states=True)
        expected = model(**inputs).logits
    by_hand = output.decoder_hidden_states[-1] @ model.lm_head.weight.T
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(output.logits, by_hand)
    assert again.config.num_decoder_layers == 3
    assert again.generation_config.decoder_start_token_id == 0


def test_the_tokenizer_neither_cuts_nor_pads_unasked(raw: Path, folder: Path) -> None:
    Export(tiny_t5()).save(raw)
    quantized_t5(raw, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a tiny text a tiny").input_ids == [3, 4, 5, 3, 4]
    ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ends == (0, 1, 2)


def test_graphs_with_two_embeddings_are_refused(raw: Path, folder: Path) -> None:
    export = Export(tiny_t5())
    for initializer in export.initializers["encoder"]:
        if initializer.name == "enc.embed_tokens.weight_zero_point":
            initializer.CopyFrom(numpy_helper.from_array(np.array(131, np.uint8), initializer.name))
    export.save(raw)
    with pytest.raises(DataError, match="token embeddings differ"):
        quantized_t5(raw, folder)
