"""Every field of PEFT's configs: held to ours, left alone, or refused by name."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import peft
import pytest

from scalepet.pet.peft_config import config_faults

MODULE = "bert.encoder.layer.1.attention.self.query"
OURS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 2, "lora_alpha": 16.0, "use_rslora": False},
    "IA3": {"feedforward_modules": []},
    "SHIRA": {"r": 1},
    "PROMPT_TUNING": {
        "task_type": "SEQ_2_SEQ_LM",
        "num_virtual_tokens": 3,
        "num_transformer_submodules": 1,
    },
    "PREFIX_TUNING": {
        "task_type": "FEATURE_EXTRACTION",
        "num_virtual_tokens": 3,
        "num_transformer_submodules": 1,
        "num_layers": 2,
        "token_dim": 24,
        "num_attention_heads": 4,
    },
}
MADE: dict[str, peft.PeftConfig] = {
    "LORA": peft.LoraConfig(r=2, lora_alpha=16, target_modules=["query", "value"]),
    "IA3": peft.IA3Config(target_modules=["query"], feedforward_modules=[]),
    "SHIRA": peft.ShiraConfig(r=4, target_modules=["query"]),
    "PROMPT_TUNING": peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1
    ),
    "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
}
TAKEN: dict[str, dict[str, Any]] = {
    "any": {
        "auto_mapping": {"base_model_class": "BertModel"},
        "peft_version": "0.22",
        "base_model_name_or_path": "other",
        "revision": "main",
        "inference_mode": True,
        "modules_to_save": ["classifier"],
    },
    "LORA": {
        "task_type": "SEQ_CLS",
        "target_modules": ["attention.self.query"],
        "exclude_modules": ["key"],
        "lora_dropout": 0.1,
        "init_lora_weights": "gaussian",
        "layers_to_transform": [0, 1],
        "rank_pattern": {"query": 2},
        "alpha_pattern": {"query": 16},
        "megatron_core": "other",
        "loftq_config": {"loftq_bits": 4},
        "eva_config": {"rho": 2.0},
        "corda_config": {"sample_count": 256},
        "lora_ga_config": {"scale": "stable"},
        "qalora_group_size": 8,
        "runtime_config": {"ephemeral_gpu_offload": True},
    },
    "IA3": {
        "task_type": "SEQ_CLS",
        "exclude_modules": ["key"],
        "feedforward_modules": ["x"],
        "init_ia3_weights": False,
    },
    "SHIRA": {"task_type": "SEQ_CLS", "r": 7, "random_seed": 3, "init_weights": False},
    "PROMPT_TUNING": {
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "say",
        "tokenizer_name_or_path": "t5",
        "tokenizer_kwargs": {"use_fast": True},
        "num_layers": 2,
        "token_dim": 24,
        "num_attention_heads": 4,
    },
    "PREFIX_TUNING": {
        "task_type": "TOKEN_CLS",
        "init_weights": "zero",
        "encoder_hidden_size": 8,
        "num_layers": 2,
        "token_dim": 24,
        "num_attention_heads": 4,
    },
}
"""Of each type, what changes nothing of what a loaded adapter computes."""

LEFT = {"layers_pattern", "mask_type", "target_modules"}
"""Fields that say nothing without another one, or where the tensors say more."""

UNLIKE: dict[str, dict[str, Any]] = {
    "LORA": {
        "rank_pattern": {"query": 4},
        "alpha_pattern": {"query": 64},
        "layers_to_transform": [0],
        "target_modules": ["key"],
        "exclude_modules": ["query"],
        "init_lora_weights": "pissa_niter_16",
        "bias": "lora_only",
    },
    "IA3": {"target_modules": ["key"], "exclude_modules": ["query"]},
    "SHIRA": {"target_modules": ["key"]},
    "PROMPT_TUNING": {"task_type": "CAUSAL_LM", "num_transformer_submodules": 2},
    "PREFIX_TUNING": {
        "num_transformer_submodules": 2,
        "num_layers": 1,
        "token_dim": 8,
        "num_attention_heads": 2,
    },
}
"""Values that PEFT takes and that change it. Of all fields that are in neither table, any does."""


def faults_of(kind: str, **changes: Any) -> list[str]:
    stored = json.loads(json.dumps({**MADE[kind].to_dict(), **changes}, default=list))
    ours = {"peft_type": kind, **OURS[kind]}
    modules = [MODULE] if kind in ("LORA", "IA3", "SHIRA") else []
    return list(config_faults(ours, stored, modules=modules))


@pytest.mark.parametrize("kind", MADE)
def test_what_peft_writes_by_itself_is_taken(kind: str) -> None:
    assert faults_of(kind) == []
    for name, value in (TAKEN["any"] | TAKEN[kind]).items():
        assert faults_of(kind, **{name: value}) == [], name


@pytest.mark.parametrize("kind", MADE)
def test_every_other_field_is_refused_by_its_name(kind: str) -> None:
    """The fields are those of the PEFT that is installed, and one that may come."""
    fields = {field.name for field in dataclasses.fields(MADE[kind])} | {"to_come"}
    left_alone = TAKEN["any"].keys() | TAKEN[kind].keys() | LEFT
    refused = sorted((fields - left_alone) | UNLIKE[kind].keys())
    assert len(refused) >= 3
    for name in refused:
        found = faults_of(kind, **{name: UNLIKE[kind].get(name, 1)})
        assert len(found) == 1 and f"adapter_config.json: {name} is " in found[0], (name, found)


@pytest.mark.parametrize(
    "start", ["pissa", "olora", "corda", "loftq", "lora_ga", "mica", "to_come", 3]
)
def test_starts_that_change_the_backbone_are_refused(start: Any) -> None:
    (fault,) = faults_of("LORA", init_lora_weights=start)
    assert f"init_lora_weights is {start!r}" in fault


def test_what_is_left_out_is_what_peft_takes_for_it() -> None:
    ours = {"peft_type": "LORA", "r": 2, "lora_alpha": 16.0, "use_rslora": True}
    faults = list(config_faults(ours, {"peft_type": "LORA"}, modules=[]))
    assert [fault.split(": ")[1] for fault in faults] == [
        "lora_alpha is 8; allowed",
        "r is 8; allowed",
        "use_rslora is False; allowed",
    ]
