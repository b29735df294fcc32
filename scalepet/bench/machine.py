"""What a figure was measured on: device, driver, libraries and compilers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from typing import Any

import torch

from scalepet.launch.facts import own_facts

_PACKAGES = ("triton", "peft", "datasets", "accelerate", "numpy", "pydantic", "typer", "pytest")
_COMPILERS = ("nvcc", "g++", "gcc", "ninja")


def about_machine() -> dict[str, Any]:
    """Plain values by name; None for what the machine does not have."""
    facts = own_facts(platform.node(), 0)
    return {
        "gpus": [torch.cuda.get_device_name(index) for index in range(facts.num_gpus)],
        "gpu_bytes": (torch.cuda.get_device_properties(0).total_memory if facts.num_gpus else None),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {**facts.versions, **{name: version_of(name) for name in _PACKAGES}},
        "compilers": {name: _said(name, "--version") for name in _COMPILERS},
    }


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _said(program: str, *arguments: str) -> str | None:
    """The line with the version, of the first lines that a program prints."""
    if shutil.which(program) is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return next((line for line in lines if "release" in line), lines[0] if lines else None)
