"""What DeepSpeed would compile while a run loads, asked for beforehand."""

from __future__ import annotations

import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed.git_version_info
import deepspeed.ops.op_builder
import pytest
from deepspeed.ops.op_builder import async_io, quantizer
from deepspeed.ops.op_builder.builder import CUDAOpBuilder
from torch.utils import cpp_extension

from scalepet.engine import check_ops
from scalepet.errors import ConfigError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """It has all that the ops need."""
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(compiler.parent))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(deepspeed.git_version_info, "installed_ops", {})
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: True)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "/usr/local/cuda")
    fit = "deepspeed.ops.op_builder.builder.assert_no_cuda_mismatch"
    monkeypatch.setattr(fit, lambda name: True)
    for name in ("AsyncIOBuilder", "QuantizerBuilder"):
        monkeypatch.setattr(
            deepspeed.ops.op_builder, name, lambda name=name: builder_of(name), raising=False
        )
    return monkeypatch


def builder_of(name: str, *, has_libaio: bool = True) -> Any:
    """As on a machine with GPUs."""
    of_deepspeed = {"AsyncIOBuilder": async_io, "QuantizerBuilder": quantizer}[name]
    builder = getattr(of_deepspeed, name)()
    builder.is_compatible = lambda verbose: has_libaio
    return builder


def on_nvme(folder: Path, *names: str) -> dict[str, Any]:
    options = {"device": "nvme", "nvme_path": str(folder / "nvme")}
    return {"zero_optimization": {"stage": 3, **dict.fromkeys(names, options)}}


QWZ = {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}


def faults_of(ds_file: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_ops(ds_file)
    return [*caught.value.faults]


def without(patch: pytest.MonkeyPatch, what: str, folder: Path) -> None:
    if what == "ninja":
        patch.setattr(cpp_extension, "is_ninja_available", lambda: False)
    elif what == "compiler":
        patch.setenv("PATH", str(folder / "nowhere"))
    elif what == "nvcc":
        patch.setattr(cpp_extension, "CUDA_HOME", None)
    elif what == "libaio":
        bare = lambda: builder_of("AsyncIOBuilder", has_libaio=False)  # noqa: E731
        patch.setattr(deepspeed.ops.op_builder, "AsyncIOBuilder", bare)
    elif what == "fit":

        def mismatch(name: str) -> None:
            raise RuntimeError("Installed CUDA version 11.8 does not match the version 13.0\nmore")

        patch.setattr("deepspeed.ops.op_builder.builder.assert_no_cuda_mismatch", mismatch)


WORDS = {
    "ninja": "ninja (pip install ninja)",
    "compiler": "a C++ compiler (c++; g++, or CXX names one)",
    "nvcc": "the CUDA toolkit with nvcc (CUDA_HOME names its folder)",
    "libaio": "libaio with its header (the package libaio-dev or libaio-devel; CFLAGS, LDFLAGS)",
    "fit": "an nvcc for this torch (Installed CUDA version 11.8 does not match the version 13.0)",
}


def test_a_machine_that_has_all(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_ops(QWZ)
    check_ops(on_nvme(tmp_path, "offload_param", "offload_optimizer"))


def test_nothing_is_asked_for_what_needs_no_op(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = SimpleNamespace(__getattr__=lambda name: pytest.fail("it need not be asked"))
    monkeypatch.setattr(deepspeed.ops, "op_builder", fail)
    offload = {"offload_param": {"device": "cpu"}, "zero_quantized_weights": False}
    check_ops({"zero_optimization": {"stage": 3, **offload}})
    check_ops({})


@pytest.mark.parametrize("what", WORDS)
def test_nvme(what: str, machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(machine, what, tmp_path)
    [fault] = faults_of(on_nvme(tmp_path, "offload_param"))
    assert fault.startswith("deepspeed: offload_param on nvme needs an op that DeepSpeed compiles")
    assert fault.endswith(f"this machine lacks {WORDS[what]}")


@pytest.mark.parametrize("what", [what for what in WORDS if what != "libaio"])
def test_quantized_gathers(what: str, machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(machine, what, tmp_path)
    [fault] = faults_of(QWZ)
    assert fault.startswith("deepspeed: zero_quantized_weights needs an op")
    assert fault.endswith(f"this machine lacks {WORDS[what]}")


def test_all_that_is_missing_in_one_message(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for what in ("ninja", "compiler", "nvcc", "libaio"):
        without(machine, what, tmp_path)
    [fault] = faults_of(on_nvme(tmp_path, "offload_param", "offload_optimizer"))
    assert "offload_param and offload_optimizer on nvme needs" in fault
    assert all(WORDS[what] in fault for what in ("ninja", "compiler", "nvcc", "libaio"))


def test_an_op_that_is_installed_needs_no_compiler(
    machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for what in ("ninja", "compiler", "nvcc", "libaio"):
        without(machine, what, tmp_path)
    installed = {"async_io": True, "quantizer": True}
    machine.setattr(deepspeed.git_version_info, "installed_ops", installed)
    check_ops(QWZ)
    check_ops(on_nvme(tmp_path, "offload_param"))


def test_a_folder_that_cannot_be_written(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvme").touch()
    [fault] = faults_of(on_nvme(tmp_path, "offload_optimizer"))
    assert f"offload_optimizer.nvme_path is {tmp_path / 'nvme'}, and" in fault


def test_these_builders_are_deepspeeds() -> None:
    """As they stand, whichever accelerator this machine has."""
    assert issubclass(async_io.AsyncIOBuilder, CUDAOpBuilder)
    assert async_io.AsyncIOBuilder.NAME == "async_io"
    assert quantizer.QuantizerBuilder.NAME == "quantizer"
