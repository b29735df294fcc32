"""What PEFT's ``adapter_config.json`` (0.21) says beyond names and shapes of tensors.

Read, and held to what was planned, are the fields that scalepet has itself. Left alone are those
that say how training starts and goes, and whence the adapter comes. Whatever else is there and not
at rest changes what a loaded adapter computes, or may do so, and is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

_LEFT_OUT = {"lora_alpha": 8, "r": 8, "use_rslora": False}
"""What PEFT takes for a field that is not there, where that is not nothing."""

_TOLD_BY_TENSORS = {"target_modules", "exclude_modules", "feedforward_modules", "modules_to_save"}
_TOLD_BY_TENSORS |= {"layers_to_transform", "layers_pattern", "mask_type", "random_seed"}

_OF_THE_FILE = {"peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"}
_OF_THE_FILE |= {"inference_mode", "task_type", "runtime_config"}

_OF_TRAINING = {"lora_dropout", "init_ia3_weights", "init_weights", "encoder_hidden_size"}
_OF_TRAINING |= {"prompt_tuning_init", "prompt_tuning_init_text"}
_OF_TRAINING |= {"tokenizer_name_or_path", "tokenizer_kwargs"}
# Of starts and layers that are refused themselves where they are asked for.
_OF_TRAINING |= {"eva_config", "corda_config", "lora_ga_config", "loftq_config"}
_OF_TRAINING |= {"megatron_core", "qalora_group_size"}

_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Of LoRA, those that leave the weights of the backbone as they are; the others (PiSSA, OLoRA,
CorDA, LoftQ, LoRA-GA) take something out of them.
"""

_FOUND_BY_PEFT = ("token_dim", "num_layers", "num_attention_heads")
"""Of the backbone; PEFT looks them up where they are null."""

_ALIKE = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
"""Exceptions to a field, which change nothing where they say the same."""

_ANY_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")


def config_faults(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], *, modules: Collection[str]
) -> Iterator[str]:
    """Why the file computes something else than what was planned, one line for each field.

    Args:
        ours: what the planned method would be written as.
        modules: those that the file has tensors for.
    """
    known = {*ours, *_TOLD_BY_TENSORS, *_OF_THE_FILE, *_OF_TRAINING, *_FOUND_BY_PEFT}
    for field in sorted(_compared(ours)):
        found = theirs.get(field, _LEFT_OUT.get(field))
        may_be_null = field in _FOUND_BY_PEFT or ours["peft_type"] == "PREFIX_TUNING"
        if found != ours[field] and not (found is None and may_be_null):
            yield _fault(field, found, repr(ours[field]))
    for field, found in theirs.items():
        if field in _ALIKE and isinstance(found, dict):
            base = theirs.get(_ALIKE[field], _LEFT_OUT[_ALIKE[field]])
            if any(value != base for value in found.values()):
                yield _fault(field, found, f"{base!r}, as {_ALIKE[field]} is, for every layer")
        elif field == "init_lora_weights":
            if not any(found is start or found == start for start in _STARTS):
                yield _fault(
                    field,
                    found,
                    f"{', '.join(map(repr, _STARTS))}; others change the weights of the backbone",
                )
        elif field == "bias" and found == "none":
            continue
        elif field not in known and _is_set(found):
            yield _fault(field, found, "nothing: scalepet has no such thing")
    yield from _left_out(theirs, modules)


def _compared(ours: Mapping[str, Any]) -> set[str]:
    """The fields that are one value in both programs."""
    compared = {*ours} - _TOLD_BY_TENSORS - {"inference_mode"}
    if ours["peft_type"] != "PROMPT_TUNING":  # by its task PEFT chooses how a prompt is read
        compared -= {"task_type"}
    return compared - ({"r"} if ours["peft_type"] == "SHIRA" else set())


def _is_set(value: Any) -> bool:
    return value is not None and value is not False and value not in ({}, [], "")


def _fault(field: str, value: Any, allowed: str) -> str:
    return f"adapter_config.json: {field} is {value!r}; allowed: {allowed}"


def _left_out(theirs: Mapping[str, Any], modules: Collection[str]) -> Iterator[str]:
    """PEFT passes over the tensors of modules that its config does not name."""
    checks: dict[str, Callable[[str, Any], bool]] = {
        "target_modules": lambda module, found: (
            not isinstance(found, list) or _is_named(module, found)
        ),
        "exclude_modules": lambda module, found: (
            not isinstance(found, list) or not _is_named(module, found)
        ),
        "layers_to_transform": lambda module, found: _is_in_layers(module, found),
    }
    for field, reaches in checks.items():
        found = theirs.get(field)
        passed_over = [m for m in sorted(modules) if _is_set(found) and not reaches(m, found)]
        if passed_over:
            yield (
                f"adapter_config.json: {field} is {found!r}, so that PEFT passes over"
                f" {passed_over[0]}, which the file has tensors for; allowed: what it is adapted by"
            )


def _is_named(module: str, names: Collection[Any]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_in_layers(module: str, layers: Any) -> bool:
    found = _ANY_LAYER.match(f"{module}.")
    wanted = layers if isinstance(layers, list) else [layers]
    return found is not None and int(found[1]) in wanted
