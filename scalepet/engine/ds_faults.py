"""What is wrong with the content of a DeepSpeed file, in words.

DeepSpeed itself takes a misspelt ``zero_optimzation`` without a word and trains at stage 0, leaves
out options of ``aio`` that it does not know, and turns ``"auto"`` into its own defaults. Here all
that is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from scalepet.engine.processes import quiet_deepspeed
from scalepet.launch.gpus import sees_gpus

ALLOWED_KEYS = ("zero_optimization", "aio", "comms_logger", "communication_data_type")
"""What a DeepSpeed file may hold at its top."""

_SET_BY_THE_RUN = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "gradient_clipping": "train.clip",
    "bf16": "precision",
    "fp16": "precision",
    "optimizer": "train.learning_rate and train.weight_decay",
    "scheduler": "train.schedule",
    "wandb": "wandb",
}

_REFUSED_ZERO_OPTIONS = {
    "zero_quantized_nontrainable_weights": "it zeroes weights that are frozen already",
}

_ZERO_3_OPTIONS = {
    "offload_param": None,
    "zero_hpz_partition_size": 1,
    "zero_quantized_weights": False,
}
"""What DeepSpeed takes and then ignores at other stages -> the value that asks for nothing."""

_CUDA_OPTIONS = ("zero_quantized_weights", "zero_quantized_gradients")

_COMMUNICATION_DTYPES = ("fp32", "bf16", "fp16")


def faults_in(content: Mapping[str, Any], label: str) -> Iterator[str]:
    """Every fault of the content of a DeepSpeed file, each behind ``label``."""
    for key in content:
        if key in _SET_BY_THE_RUN:
            home = _SET_BY_THE_RUN[key]
            yield f"{label}: {key!r} has no place here; set {home} in the run's config"
        elif key not in ALLOWED_KEYS:
            yield f"{label}: unknown key {key!r}; allowed: {', '.join(ALLOWED_KEYS)}"
    for trail in _find_auto(content):
        yield (
            f'{label}: {trail} is "auto", which DeepSpeed quietly turns into its default;'
            " allowed: a value, or leave it out"
        )
    yield from _faults_in_zero(content.get("zero_optimization", {}), label)
    yield from _faults_in_aio(content.get("aio", {}), label)
    yield from _faults_in_communication(content, label)


def _find_auto(value: Any, trail: str = "") -> Iterator[str]:
    if value == "auto":
        yield trail
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _find_auto(inner, f"{trail}.{key}" if trail else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _find_auto(inner, f"{trail}[{index}]")


def _faults_in_zero(zero: Any, label: str) -> Iterator[str]:
    for key, reason in _REFUSED_ZERO_OPTIONS.items():
        if isinstance(zero, Mapping) and zero.get(key):
            yield f"{label}: zero_optimization.{key} is refused: {reason}"
    yield from _faults_in_places(zero, label)
    quiet_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    yield from _faults_by_model(DeepSpeedZeroConfig, zero, f"{label}: zero_optimization")


def _faults_in_places(zero: Any, label: str) -> Iterator[str]:
    """What DeepSpeed takes and then ignores, or fails on when the first weight moves."""
    if not isinstance(zero, Mapping):
        return
    stage = zero.get("stage", 0)
    for name, nothing in _ZERO_3_OPTIONS.items():
        if zero.get(name) not in (None, nothing) and stage in (0, 1, 2):
            yield (
                f"{label}: zero_optimization.{name} is {zero[name]!r} at stage {stage}, where"
                " DeepSpeed ignores it; allowed: stage 3"
            )
    for name in _CUDA_OPTIONS:
        if zero.get(name) and not sees_gpus():
            yield (
                f"{label}: zero_optimization.{name} is {zero[name]!r}, which rounds with a CUDA"
                " kernel, and this process sees no CUDA device; allowed here: false"
            )
    for name in ("offload_param", "offload_optimizer"):
        options = zero.get(name)
        if (
            isinstance(options, Mapping)
            and options.get("device") == "nvme"
            and not options.get("nvme_path")
        ):
            yield f"{label}: zero_optimization.{name}.nvme_path is missing; allowed: a folder"


def _faults_in_communication(content: Mapping[str, Any], label: str) -> Iterator[str]:
    quiet_deepspeed()
    from deepspeed.comm.config import CommsLoggerConfig

    logger = content.get("comms_logger", {})
    yield from _faults_by_model(CommsLoggerConfig, logger, f"{label}: comms_logger")
    dtype = content.get("communication_data_type")
    if dtype not in (None, *_COMMUNICATION_DTYPES):
        allowed = ", ".join(_COMMUNICATION_DTYPES)
        yield f"{label}: communication_data_type is {dtype!r}; allowed: {allowed}"


def _faults_in_aio(aio: Any, label: str) -> Iterator[str]:
    """DeepSpeed leaves out an ``aio`` option that it does not know, without a word."""
    quiet_deepspeed()
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    if not isinstance(aio, Mapping):
        yield f"{label}: aio is {aio!r}; allowed: an object"
        return
    for key, value in aio.items():
        if key not in AIO_DEFAULT_DICT:
            yield f"{label}: unknown key aio.{key}; allowed: {', '.join(AIO_DEFAULT_DICT)}"
        elif type(value) is not (kind := type(AIO_DEFAULT_DICT[key])):
            yield f"{label}: aio.{key} is {value!r}; allowed: {kind.__name__}"


def _faults_by_model(model: Any, section: Any, label: str) -> Iterator[str]:
    """What DeepSpeed's own pydantic model of a section of the file does not take."""
    if not isinstance(section, Mapping):
        yield f"{label} is {section!r}; allowed: an object"
        return
    try:
        model(**section)
    except pydantic.ValidationError as error:
        for fault in error.errors():
            trail = ".".join(map(str, (label, *fault["loc"])))
            # A fault of several options together comes with all options as its value.
            value = fault["input"]
            shown = "" if isinstance(value, pydantic.BaseModel) else f" = {value!r}"
            message = fault["msg"]
            if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
                names = {field.alias or name for name, field in model.model_fields.items()}
                allowed = sorted(names - _REFUSED_ZERO_OPTIONS.keys())
                message = f"no such option; allowed: {', '.join(allowed)}"
            yield f"{trail}{shown}: {message}"
    except (AssertionError, TypeError) as error:
        yield f"{label}: {error}"
