"""Which GPUs a process can use, held against what its driver says. No GPU is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scalepet.errors import LaunchError
from scalepet.launch import gpus
from scalepet.launch.gpus import Driver, ask_driver, count_gpus, name_gpus, sees_gpus, why_cpu

TWO = Driver("535.104.05", ("NVIDIA H200", "NVIDIA H200"))


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine without a driver, and nothing hidden."""
    for name in ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "driver")
    monkeypatch.setattr(gpus, "DEVICES", tmp_path / "dev")
    for folder in ("bin", "dev"):
        (tmp_path / folder).mkdir()
    torch_sees(monkeypatch, 0)
    ask_driver.cache_clear()
    yield
    ask_driver.cache_clear()


def torch_sees(monkeypatch: pytest.MonkeyPatch, num_gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)


def driver_has(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(gpus, "ask_driver", lambda: driver)


def write_driver(folder: Path, *, num_gpus: int = 2, device: bool = True) -> None:
    """The files of the kernel module."""
    for index in range(num_gpus):
        path = folder / "driver" / "gpus" / f"0000:{index:02}:00.0"
        path.mkdir(parents=True)
        (path / "information").write_text(f"Model: \t NVIDIA H200\nIRQ: {index}\n")
    (folder / "driver" / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
        "GCC version:  gcc version 12.3.0\n"
    )
    if device:
        (folder / "dev" / "nvidia0").touch()


def write_program(folder: Path, script: str) -> None:
    path = folder / "bin" / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


class TestCount:
    def test_no_gpu(self) -> None:
        assert (count_gpus(), name_gpus(), sees_gpus(), why_cpu()) == (0, [], False, "")

    def test_what_torch_sees_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch_sees(monkeypatch, 2)
        monkeypatch.setattr(gpus, "ask_driver", lambda: pytest.fail("it need not be asked"))
        assert (count_gpus(), name_gpus(), sees_gpus()) == (2, ["0", "1"], True)

    @pytest.mark.parametrize("cuda", [None, "13.0"])
    def test_gpus_that_torch_cannot_use_are_refused(
        self, cuda: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        driver_has(monkeypatch, TWO)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        old = "The NVIDIA driver on your system is too old (found version 12020). Please update"

        def init() -> None:
            raise RuntimeError(old)

        monkeypatch.setattr(torch.cuda, "init", init)
        with pytest.raises(LaunchError) as caught:
            count_gpus()
        said = str(caught.value)
        assert "NVIDIA driver 535.104.05 has 2 GPUs (NVIDIA H200)" in said
        assert (
            f"torch {torch.__version__}, built for {'CPUs' if cuda is None else 'CUDA 13.0'}"
            in said
        )
        assert ("(found version 12020)" in said) is (cuda is not None)
        assert "allowed: a wheel of torch for this driver" in said
        assert "on the CPU, an empty CUDA_VISIBLE_DEVICES" in said

    @pytest.mark.parametrize("name", ["7", "GPU-1234", "0,1"])
    def test_a_gpu_that_is_not_there_hides_nothing_on_purpose(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        driver_has(monkeypatch, TWO)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", name)
        with pytest.raises(
            LaunchError, match=f"sees none of them with CUDA_VISIBLE_DEVICES={name}"
        ):
            count_gpus()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("CUDA_VISIBLE_DEVICES", ""),
            ("CUDA_VISIBLE_DEVICES", "-1"),
            ("CUDA_VISIBLE_DEVICES", "NoDevFiles"),
            ("DS_ACCELERATOR", "cpu"),
        ],
    )
    def test_hidden_on_purpose(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        assert (count_gpus(), why_cpu()) == (0, "")
        driver_has(monkeypatch, TWO)
        assert (count_gpus(), name_gpus()) == (0, [])
        assert why_cpu() == f"on the CPU: {name}={value} hides 2 GPUs of this machine"

    def test_deepspeeds_cpu_hides_what_torch_sees(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch_sees(monkeypatch, 1)
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        assert (count_gpus(), sees_gpus()) == (0, False)
        assert why_cpu() == "on the CPU: DS_ACCELERATOR=cpu hides 1 GPU of this machine"

    @pytest.mark.parametrize(("value", "words"), [("cuda", "has no GPU"), ("xpu", "allowed: cuda")])
    def test_an_accelerator_that_is_not_there(
        self, value: str, words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DS_ACCELERATOR", value)
        with pytest.raises(LaunchError, match=f"DS_ACCELERATOR is '?{value}.*{words}"):
            count_gpus()

    @pytest.mark.parametrize(
        ("visible", "num_gpus", "names"),
        [
            ("4,6", 2, ["4", "6"]),
            ("4,6,-1,7", 2, ["4", "6"]),  # CUDA stops at the first that is none
            ("MIG-a,MIG-b", 1, ["MIG-a", "MIG-b"]),  # a process sees one of them
            ("4,6", 0, []),
        ],
    )
    def test_names_for_another_process(
        self, visible: str, num_gpus: int, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch_sees(monkeypatch, num_gpus)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert name_gpus() == names


class TestDriver:
    def test_none(self) -> None:
        assert ask_driver() == Driver("", ())

    def test_by_its_files(self, tmp_path: Path) -> None:
        write_driver(tmp_path)
        assert ask_driver() == TWO

    @pytest.mark.parametrize("device", [False, True])
    def test_a_device_that_cannot_be_opened_is_of_others(
        self, device: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in a container without GPUs, or in a job of SLURM that has asked for none."""
        write_driver(tmp_path, device=device)
        opened = os.open

        def refuse(path: Path, *rest: int) -> int:
            if Path(path).parent == tmp_path / "dev":
                raise PermissionError
            return opened(path, *rest)

        monkeypatch.setattr(os, "open", refuse)
        assert ask_driver() == Driver("", ())

    def test_by_nvidia_smi(self, tmp_path: Path) -> None:
        write_program(tmp_path, "echo '535.104.05, NVIDIA H200'; echo '535.104.05, NVIDIA H200'")
        assert ask_driver() == TWO

    @pytest.mark.parametrize(
        "script",
        [
            "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9",
            "echo 'No devices were found'",
            "exit 0",
        ],
    )
    def test_nvidia_smi_without_a_gpu(self, script: str, tmp_path: Path) -> None:
        write_program(tmp_path, script)
        assert ask_driver() == Driver("", ())

    def test_a_driver_that_hangs_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_program(tmp_path, "exec /bin/sleep 20")
        monkeypatch.setattr(gpus, "ASK_SECONDS", 0.2)
        assert ask_driver().gpus == ("nvidia-smi does not answer within 0.2 s",)
