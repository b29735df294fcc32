"""What DeepSpeed compiles when a run loads, asked for beforehand.

Its builders would fail in the middle of loading, each with a traceback of its own.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scalepet.engine.processes import quiet_deepspeed
from scalepet.errors import ConfigError

_NVME, _QUANTIZED = "AsyncIOBuilder", "QuantizerBuilder"


def check_ops(ds_file: Mapping[str, Any]) -> None:
    """Returns if this machine has what the options of a DeepSpeed file need.

    Raises:
        ConfigError: NVMe cannot be written, or an op is neither installed nor can be compiled.
    """
    zero = ds_file.get("zero_optimization", {})
    faults = []
    for option, builder in _asked(zero):
        missing = list(_missing_for(builder))
        if missing:
            faults.append(
                f"deepspeed: {option} needs an op that DeepSpeed compiles, and this machine lacks"
                f" {'; '.join(missing)}"
            )
    faults += _faults_in_folders(zero)
    if faults:
        raise ConfigError(faults)


def _asked(zero: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Options -> the builder of their op, once each."""
    on_nvme = [name for name in ("offload_param", "offload_optimizer") if _on_nvme(zero, name)]
    if on_nvme:
        yield f"{' and '.join(on_nvme)} on nvme", _NVME
    quantized = [
        name
        for name in ("zero_quantized_weights", "zero_quantized_gradients")
        if zero.get(name) is True
    ]
    if quantized:
        yield " and ".join(quantized), _QUANTIZED


def _on_nvme(zero: Mapping[str, Any], name: str) -> bool:
    options = zero.get(name)
    return isinstance(options, Mapping) and options.get("device") == "nvme"


def _missing_for(builder_name: str) -> Iterator[str]:
    deepspeed = quiet_deepspeed()
    from deepspeed.git_version_info import installed_ops
    from torch.utils import cpp_extension

    builder = getattr(deepspeed.ops.op_builder, builder_name)()
    if installed_ops.get(builder.name):
        return
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        yield f"a C++ compiler ({compiler}; g++, or CXX names one)"
    if not cpp_extension.is_ninja_available():
        yield "ninja (pip install ninja)"
    is_for_cuda = isinstance(builder, deepspeed.ops.op_builder.builder.CUDAOpBuilder)
    if is_for_cuda and cpp_extension.CUDA_HOME is None:
        yield "the CUDA toolkit with nvcc (CUDA_HOME names its folder)"
    elif is_for_cuda:
        yield from _unlike_toolkit(builder)
    if builder_name == _NVME and not _is_compatible(builder):
        yield "libaio with its header (the package libaio-dev or libaio-devel; CFLAGS, LDFLAGS)"


def _unlike_toolkit(builder: Any) -> Iterator[str]:
    """CUDA of another version than that which torch was built with."""
    from deepspeed.ops.op_builder.builder import assert_no_cuda_mismatch

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert_no_cuda_mismatch(builder.name)
    except Exception as error:  # of several kinds
        yield f"an nvcc for this torch ({str(error).strip().splitlines()[0]})"


def _is_compatible(builder: Any) -> bool:
    """Compiles and links a few lines."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return bool(builder.is_compatible(verbose=False))
    except Exception:  # such as a Python without distutils
        return False


def _faults_in_folders(zero: Mapping[str, Any]) -> Iterator[str]:
    for name in ("offload_param", "offload_optimizer"):
        if not _on_nvme(zero, name):
            continue
        folder = Path(zero[name]["nvme_path"]).absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            yield (
                f"deepspeed: zero_optimization.{name}.nvme_path is {folder}, and {there} cannot be"
                " written; allowed: a folder on NVMe"
            )
