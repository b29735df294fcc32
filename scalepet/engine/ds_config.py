"""DeepSpeed files: what the user may say in one, and the whole config that scalepet makes of it.

A file says how the backbone is sharded and offloaded and nothing else; batch sizes, precision,
clipping, optimizer and schedule come from the run, so that no number has two homes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from scalepet import dist
from scalepet.engine.ds_faults import faults_in
from scalepet.engine.processes import quiet_deepspeed
from scalepet.errors import ConfigError
from scalepet.paths import expanded
from scalepet.reading import parse_json, read_text

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_TRAINED_BUCKET_ELEMENTS = 2_000_000
"""DeepSpeed allocates ``reduce_bucket_size`` whole, and at stage 2 with overlap twice: by default
5e8 elements, 1 GB in bf16. These are 4 MB: room for what is usually trained, so that one collective
sums it up, and so little that a smaller one for fewer numbers would save nothing.
"""


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
    content, label = find_ds_file(name_or_path)
    faults = [*faults_in(content, label)]
    if faults:
        raise ConfigError(faults)
    return _with_places(content)


def _with_places(content: dict[str, Any]) -> dict[str, Any]:
    """The content with ~ and variables filled in where it names folders."""
    zero = dict(content.get("zero_optimization") or {})
    for name in ("offload_param", "offload_optimizer"):
        place = (zero.get(name) or {}).get("nvme_path")
        if isinstance(place, str):
            zero[name] = {**zero[name], "nvme_path": expanded(place)}
    return {**content, "zero_optimization": zero} if zero else content


def find_ds_file(name_or_path: str | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The content as it stands there, looked at by nobody, and where.

    Raises:
        ConfigError: not found, or not JSON.
    """
    if isinstance(name_or_path, Mapping):
        return dict(name_or_path), "deepspeed"
    is_shipped = name_or_path in shipped_names()
    path = (
        _shipped_folder() / f"{name_or_path}.json" if is_shipped else Path(expanded(name_or_path))
    )
    return _read_json(path, asked=name_or_path), str(path)


def _read_json(path: Path, *, asked: str) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path))
    except OSError as error:
        raise ConfigError(
            f"deepspeed: {asked!r} is neither a file nor one of {', '.join(shipped_names())}"
            f" ({error.strerror})"
        ) from error
    except ValueError as error:
        raise ConfigError(f"deepspeed: {path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed: {path} holds a {type(content).__name__}; allowed: an object")
    return content


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

    Raises:
        ConfigError: as ``check_precision``; or hpZ cannot cut this many processes into nodes.
    """
    check_precision(precision)
    _check_partition(ds_file)
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
        # Its loss scale is a dynamic one: from 65,536 on it is halved where a gradient overflows,
        # and doubled after 1,000 steps without.
        "fp16": {"enabled": precision == "fp16"},
        # The optimizer is torch's: DeepSpeed's own ones are compiled at the first start.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
    }


def _check_partition(ds_file: Mapping[str, Any]) -> None:
    asked = ds_file.get("zero_optimization", {}).get("zero_hpz_partition_size", 1)
    world_size = dist.world_size()
    # DeepSpeed takes the number of processes where there are fewer, and cuts them into equal parts.
    if world_size % max(1, min(asked, world_size)):
        raise ConfigError(
            f"deepspeed: zero_optimization.zero_hpz_partition_size: {asked} for {world_size}"
            " processes; allowed: a number that divides them, best that of the GPUs in a node"
        )


def check_precision(precision: Precision) -> None:
    """
    Raises:
        ConfigError: DeepSpeed does not run this precision on this process's device.
    """
    if precision != "fp16":
        return
    quiet_deepspeed()
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if not accelerator.is_fp16_supported():
        raise ConfigError(
            f"precision: fp16, which DeepSpeed does not run on this {accelerator.device_name()};"
            " allowed here: bf16, fp32"
        )
