"""Activations and shapes, held to the models themselves: names, and bytes that autograd keeps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from scalepet import backbones, pet
from scalepet.planning import Batch, Kept, count_activations, shape_of
from scalepet.recipes.plan import tuned_by

ROWS, SOURCE, TARGET, RANK = 4, 16, 8, 4
NUM_BYTES = {torch.bfloat16: 2, torch.float32: 4}
T5_SHAPE = {
    "vocab_size": 60,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
BERT_SHAPE = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "attention_probs_dropout_prob": 0.0,
}
GATED = {"feed_forward_proj": "gated-gelu"}
METHOD_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "apet": ("apet", {"budget": 2000}),
    "lora": ("lora", {"r": RANK}),
    "apet, last layer": ("apet", {"budget": 100, "include": ["*1.output.dense*", "*block.1.*"]}),
    "apet, ffn_out": ("apet", {"budget": 100, "parts": ["ffn_out"]}),
    "apet, norms": ("apet", {"budget": 20, "kinds": ["norm"]}),
    "apet, concat": ("apet", {"budget": 240, "operation": "concat"}),
    "apet, plug": ("apet", {"budget": 400, "operation": "plug"}),
    "apet, mix": ("apet", {"budget": 6000, "operation": "mix"}),
    "prompt": ("prompt", {"length": 100}),
    "prefix": ("prefix", {"length": 100}),
    "adapter": ("adapter", {"bottleneck": 6}),
    "ia3": ("ia3", {}),
    "bitfit": ("bitfit", {}),
    "full": ("full", {}),
    "head": ("head", {}),
}
WIDE: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 96, "d_kv": 24, "d_ff": 256},
    "bert": {"hidden_size": 96, "intermediate_size": 384},
}


def make_config(family: str, **options: Any) -> Any:
    if family == "bert":
        rate = options.pop("dropout_rate", 0.0)
        return transformers.BertConfig(**{**BERT_SHAPE, "hidden_dropout_prob": rate, **options})
    return transformers.T5Config(**{**T5_SHAPE, "dropout_rate": 0.0, **options})


@pytest.mark.parametrize(
    "config",
    [
        make_config("t5"),
        make_config("t5", scale_decoder_outputs=True),
        make_config("t5", num_decoder_layers=3, **GATED),
        make_config("bert", num_labels=5),
    ],
    ids=["t5 of v1.1", "t5 of v1.0", "gated, deeper decoder", "bert"],
)
def test_shapes_have_the_tensors_of_the_model_in_its_order(config: Any) -> None:
    model = backbones.sketch_model(config)
    classes = {"num_labels": config.num_labels}
    planned = [(t.name, t.shape) for t in shape_of({**config.to_dict(), **classes}).tensors]
    assert planned == [(name, tuple(p.shape)) for name, p in model.named_parameters()]


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("method", ["apet", "lora"])
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_bytes_that_a_forward_keeps(
    family: str, method: str, dtype: torch.dtype, is_checkpointed: bool
) -> None:
    config = make_config(family, **(GATED if family == "t5" else {}))
    measured, planned = compare(config, method, dtype, is_checkpointed=is_checkpointed)
    assert planned == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(
    "method",
    [
        "apet, concat",
        "apet, plug",
        "apet, mix",
        "prompt",
        "prefix",
        "adapter",
        "ia3",
        "bitfit",
        "full",
    ],
)
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_every_method_keeps_what_is_planned(
    family: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (family, method) == ("t5", "full"):
        # No fused kernel of a CPU gives a T5's position bias its gradient.
        options = {"exclude": ["*relative_attention_bias*"]}
        monkeypatch.setitem(METHOD_OPTIONS, method, (method, options))
    config = make_config(family, **(GATED if family == "t5" else {}))
    measured, planned = compare(config, method, torch.bfloat16)
    assert planned == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(
    ("activation", "method"),
    [
        ("bert", "head"),
        *itertools.product(
            ["relu", "gated-silu", "gated-gelu", "bert"],
            ["apet, last layer", "apet, ffn_out", "apet"],
        ),
    ],
)
def test_the_fullest_moment_of_a_forward(
    activation: str, method: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where little is kept for backward, it is in the middle of a layer."""
    # More tokens than a weight has columns: a CPU's products in 16 bits hold copies of weights.
    monkeypatch.setitem(globals(), "ROWS", 64)
    family = "bert" if activation == "bert" else "t5"
    options = {} if family == "bert" else {"feed_forward_proj": activation}
    config = make_config(family, **WIDE[family], **options)
    model, kept = prepare(config, method, dtype)
    planned = kept.saved_bytes + max(kept.layer_bytes, kept.passing_bytes)
    assert planned == pytest.approx(most_bytes(model, config), rel=0.1)


@pytest.mark.parametrize("method", ["apet, last layer", "apet, ffn_out", "apet, norms"])
@pytest.mark.parametrize("activation", ["relu", "gated-silu", "gated-gelu", "bert"])
def test_nothing_is_kept_below_the_first_tuned_tensor(activation: str, method: str) -> None:
    options = {} if activation == "bert" else {"feed_forward_proj": activation}
    config = make_config("bert" if activation == "bert" else "t5", **options)
    measured, planned = compare(config, method, torch.bfloat16)
    assert planned == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_masks_of_dropout_count(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention drops inside of a fused kernel on a GPU; a CPU has none that does."""
    plain = F.scaled_dot_product_attention

    def without_dropout(*tensors: Tensor, **options: Any) -> Tensor:
        return plain(*tensors, **{**options, "dropout_p": 0.0})

    monkeypatch.setattr(F, "scaled_dot_product_attention", without_dropout)
    config = make_config(family, dropout_rate=0.1)
    measured, planned = compare(config, "apet", torch.bfloat16)
    assert planned == pytest.approx(measured, rel=0.03)


def compare(
    config: Any, method: str, dtype: torch.dtype, *, is_checkpointed: bool = False
) -> tuple[int, int]:
    """Bytes measured and planned."""
    model, kept = prepare(config, method, dtype, is_checkpointed=is_checkpointed)
    return saved_bytes(model, config), kept.saved_bytes


def prepare(
    config: Any, method: str, dtype: torch.dtype, *, is_checkpointed: bool = False
) -> tuple[nn.Module, Kept]:
    """A model that is about to train, and what is planned for it."""
    name, options = METHOD_OPTIONS[method]
    is_t5 = config.model_type == "t5"
    if "include" in options:
        family = "block" if is_t5 else "output"
        options = {**options, "include": [p for p in options["include"] if family in p]}
    plan = pet.METHODS[name](backbones.sketch_sites(config), **options)
    tuned, size = tuned_by(pet.parts_of(plan)), NUM_BYTES[dtype]
    batch = Batch(
        ROWS, SOURCE, TARGET if is_t5 else 0, size, dropout_bytes=size, prompt=tuned.prompt
    )
    kept = count_activations(
        shape_of({**config.to_dict(), "num_labels": config.num_labels}),
        batch,
        tuned=tuned.beside,
        outputs=tuned.outputs,
        slots=tuned.slots,
        keeps_inputs=False,
        is_checkpointed=is_checkpointed,
    )
    model = backbones.family_of(config).model_class(config)._from_config(config, dtype=dtype)
    model.requires_grad_(False)
    if is_checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": True})
    plan.attach(model)
    for tensor_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or tensor_name.startswith("classifier"))
    return model.train(), kept


def most_bytes(model: nn.Module, config: Any) -> int:
    """Allocated at once in a forward, as torch's profiler sees it."""
    forward(model, config)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        forward(model, config)
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    found = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(num_bytes for _, num_bytes in found))


def saved_bytes(model: nn.Module, config: Any) -> int:
    """Of each storage that autograd keeps in a forward, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or its place is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(model, config)
    return sum(size for size, _ in saved.values())


def forward(model: nn.Module, config: Any) -> None:
    ids, mask = torch.randint(2, 60, (ROWS, SOURCE)), torch.ones(ROWS, SOURCE, dtype=torch.int64)
    mask[0, -1] = 0
    is_t5 = config.model_type == "t5"
    labels = torch.randint(2, 60, (ROWS, TARGET)) if is_t5 else torch.randint(0, 2, (ROWS,))
    tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    backbones.family_of(config).loss_sum(model, tensors, config=config)
