"""DeepSpeed files: what the user may say in one, and the whole config that scalepet makes of it.

A file says how the backbone is sharded and offloaded and nothing else; batch sizes, precision,
clipping, optimizer and schedule come from the run, so that no number has two homes. DeepSpeed
itself takes a misspelt ``zero_optimzation`` without a word and trains at stage 0, and turns
``"auto"`` into its own defaults; here both are refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic

from scalepet.engine.processes import quiet_deepspeed
from scalepet.errors import ConfigError

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

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

_COMMUNICATION_DTYPES = ("fp32", "bf16", "fp16")

_TRAINED_BUCKET_ELEMENTS = 2_000_000
"""DeepSpeed allocates ``reduce_bucket_size`` whole: by default 5e8 elements, 1 GB in bf16."""


def shipped_names() -> list[str]:
    """The names of the DeepSpeed files that come with scalepet, e.g. ``zero3``."""
    return sorted(path.stem for path in _shipped_folder().glob("*.json"))


def _shipped_folder() -> Path:
    """``ds_configs/``: in the package of a wheel, at the top of a checkout."""
    package = Path(str(resources.files("scalepet")))
    inside = package / "ds_configs"
    return inside if inside.is_dir() else package.parent / "ds_configs"


def read_ds_file(name_or_path: str | Mapping[str, Any]) -> dict[str, Any]:
    """The content of a DeepSpeed file: the name of a shipped one, a path, or the content itself.

    Raises:
        ConfigError: not found, not JSON, or any option that DeepSpeed or scalepet does not take;
            all faults at once.
    """
    if isinstance(name_or_path, Mapping):
        content, label = dict(name_or_path), "deepspeed"
    else:
        is_shipped = name_or_path in shipped_names()
        path = _shipped_folder() / f"{name_or_path}.json" if is_shipped else Path(name_or_path)
        content, label = _read_json(path, asked=name_or_path), str(path)
    faults = [*_faults_in(content, label)]
    if faults:
        raise ConfigError(faults)
    return content


def _read_json(path: Path, *, asked: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"deepspeed: {asked!r} is neither a file nor one of {', '.join(shipped_names())}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"deepspeed: {path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed: {path} holds a {type(content).__name__}; allowed: an object")
    return content


def _faults_in(content: Mapping[str, Any], label: str) -> Iterator[str]:
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
    quiet_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    yield from _faults_by_model(DeepSpeedZeroConfig, zero, f"{label}: zero_optimization")


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
            yield f"{trail}{shown}: {fault['msg']}"
    except (AssertionError, TypeError) as error:
        yield f"{label}: {error}"


def zero_stage(ds_file: Mapping[str, Any]) -> int:
    return int(ds_file.get("zero_optimization", {}).get("stage", 0))


def compose_ds_config(
    ds_file: Mapping[str, Any],
    *,
    precision: Precision,
    micro_batch_size: int,
    num_micro_batches: int,
    clip: float | None,
) -> dict[str, Any]:
    """The config that DeepSpeed gets.

    Args:
        micro_batch_size: rows a device and forward.
        num_micro_batches: forwards a device and optimizer step.
        clip: largest norm of the whole gradient; None for no clipping. DeepSpeed clips at 1.0 where
            nothing is said.
    """
    stage = zero_stage(ds_file)
    if stage == 0 and precision != "fp32":
        # At stage 0 DeepSpeed primes a 16-bit optimizer with a dummy step, so that Adam corrects
        # its bias for one step too many. Stage 1 holds the weights whole just the same, and the few
        # trained numbers get the right Adam.
        stage = 1
    zero = {
        "reduce_bucket_size": _TRAINED_BUCKET_ELEMENTS,
        **ds_file.get("zero_optimization", {}),
        # As a number: DeepSpeed takes "3" for 3, transformers does not and would not shard.
        "stage": stage,
    }
    return {
        **ds_file,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": 0.0 if clip is None else clip,
        "bf16": {"enabled": precision == "bf16"},
        # The optimizer is torch's: DeepSpeed's own ones are compiled at the first start.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
    }
