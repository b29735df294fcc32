"""Which GPUs a process can use, held against those that the machine's driver has.

A wheel of torch that does not fit the driver, or a GPU that is lost, would otherwise let a run go
on the CPU without a word.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from scalepet.errors import LaunchError

DRIVER = Path("/proc/driver/nvidia")
DEVICES = Path("/dev")

ASK_SECONDS = 30.0
"""nvidia-smi starts a driver that sleeps, which takes some."""

_HIDES_ALL = ("", "-1", "NoDevFiles")
"""As CUDA_VISIBLE_DEVICES; SLURM sets the last one where a job has asked for no GPU."""


class Driver(NamedTuple):
    """NVIDIA's, as it speaks for itself; torch is not asked.

    Attributes:
        version: as in "535.104.05"; "" where it does not say.
        gpus: a name for each GPU that it offers here.
    """

    version: str
    gpus: tuple[str, ...]


def sees_gpus() -> bool:
    """Whether this process works on a GPU: torch sees one, and DS_ACCELERATOR is not "cpu"."""
    return os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available()


def count_gpus() -> int:
    """How many GPUs this process can use; 0 where the machine has none, or where they are hidden:
    CUDA_VISIBLE_DEVICES is empty, DS_ACCELERATOR is "cpu".

    Raises:
        LaunchError: the driver has GPUs and torch sees none of them, or DS_ACCELERATOR asks for
            what is not there.
    """
    asked = os.environ.get("DS_ACCELERATOR")
    if asked not in (None, "cpu", "cuda"):
        raise LaunchError(f"DS_ACCELERATOR is {asked!r}; allowed: cuda, cpu, or leave it out")
    if sees_gpus():
        return torch.cuda.device_count()
    if _hidden_by() and asked != "cuda":
        return 0
    driver = ask_driver()
    if driver.gpus:
        raise LaunchError(_why_unusable(driver))
    if asked == "cuda":
        raise LaunchError("DS_ACCELERATOR is cuda, and this machine has no GPU; allowed: cpu")
    return 0


def name_gpus() -> list[str]:
    """Each GPU that this process can use, as CUDA_VISIBLE_DEVICES of another process names it.

    Raises:
        LaunchError: as ``count_gpus``.
    """
    num_gpus = count_gpus()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if num_gpus and named:
        # Of several parts of a GPU (MIG) a process sees the first one alone.
        return named if named[0].startswith("MIG-") else named[:num_gpus]
    return [str(index) for index in range(num_gpus)]


def why_cpu() -> str:
    """That the machine has GPUs and this process leaves them alone; "" where that is not so."""
    hidden_by = _hidden_by()
    if not hidden_by:
        return ""
    num_gpus = len(ask_driver().gpus) or torch.cuda.device_count()
    if not num_gpus:
        return ""
    return f"on the CPU: {hidden_by} hides {_in_words(num_gpus)} of this machine"


def _hidden_by() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in _HIDES_ALL:
        return f"CUDA_VISIBLE_DEVICES={visible.strip()}"
    return "DS_ACCELERATOR=cpu" if os.environ.get("DS_ACCELERATOR") == "cpu" else ""


def _in_words(num_gpus: int) -> str:
    return f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}"


def _why_unusable(driver: Driver) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wheel = (
        "built for CPUs" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
    )
    seen = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
    remedy = (
        "a wheel of torch for this driver (the first line of nvidia-smi names the newest CUDA that"
        " it runs), or a newer driver"
        if visible is None
        else "CUDA_VISIBLE_DEVICES that names GPUs of this machine, a wheel of torch for its driver"
    )
    return (
        f"NVIDIA driver {driver.version or '(version unknown)'} has {_in_words(len(driver.gpus))}"
        f" ({', '.join(dict.fromkeys(driver.gpus))}), and torch {torch.__version__}, {wheel}, sees"
        f" none of them{seen}{_reason_of_torch()}; allowed: {remedy}; or, to run on the CPU, an"
        " empty CUDA_VISIBLE_DEVICES"
    )


def _reason_of_torch() -> str:
    """The first sentence of what torch says when it is to use CUDA; "" for a wheel without."""
    if torch.version.cuda is None:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()
        except Exception as error:  # of several kinds
            first = re.split(r"[.\n]", str(error).strip(), maxsplit=1)[0]
            return f" ({first})"
    return ""


@functools.cache
def ask_driver() -> Driver:
    """By the files of its kernel module where this process may open a device, else by nvidia-smi.

    A container without GPUs sees the module of its host, but no device.
    """
    return _by_files() or _by_program() or Driver("", ())


def _by_files() -> Driver | None:
    folders = sorted(DRIVER.glob("gpus/*"))
    if not folders or not any(_opens(path) for path in DEVICES.glob("nvidia[0-9]*")):
        return None
    version = ""
    with contextlib.suppress(OSError):
        found = re.search(r"\d+\.\d+[.\d]*", (DRIVER / "version").read_text(encoding="utf-8"))
        version = found[0] if found else ""
    return Driver(version, tuple(map(_model_of, folders)))


def _opens(device: Path) -> bool:
    """A job of SLURM sees the devices of others, but may not open them."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError:
        return False
    return True


def _model_of(folder: Path) -> str:
    with contextlib.suppress(OSError):
        for line in (folder / "information").read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return folder.name


def _by_program() -> Driver | None:
    """nvidia-smi, where there are no such files (WSL)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_SECONDS
        )
    except (OSError, ValueError):
        return None
    except subprocess.TimeoutExpired:
        return Driver("", (f"nvidia-smi does not answer within {ASK_SECONDS:g} s",))
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not lines or lines[0].startswith("No devices"):
        return None
    found = re.match(r"\d+\.\d+[.\d]*", lines[0])
    return Driver(
        found[0] if found else "", tuple(line.partition(",")[2].strip() or line for line in lines)
    )
