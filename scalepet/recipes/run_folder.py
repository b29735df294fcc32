"""What a run leaves behind: everything a table, a figure or the next process needs, as data."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

import scalepet
from scalepet import dist, engine
from scalepet.config import RunConfig, StreamConfig, plain
from scalepet.engine import RunState
from scalepet.errors import CheckpointError
from scalepet.tracking import Trackers, open_trackers, seal, without_secrets

ADAPTER = "adapter"
STATE = "state"

_SEALED = ("config.yaml", "run.json", "cell.json", "metrics.jsonl", "matrix.json", "result.json")
"""cell.json is what a study writes beside the run."""

_LIBRARIES = ("torch", "deepspeed", "transformers", "datasets", "numpy")


class Resumable(Protocol):
    """A run that is ready to load its weights."""

    @property
    def has_state(self) -> bool:
        """Whether it was stopped and goes on."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What may not change between its parts."""


def open_run_folder(folder: Path, *, resume: bool) -> bool:
    """Make the folder; whether there is a state in it to go on from.

    Raises:
        CheckpointError: it cannot be written, or holds a run already and ``resume`` is not asked
            for.
    """
    has_state = (folder / STATE).exists() or (folder / f"{STATE}.old").exists()
    if (folder / "metrics.jsonl").exists() and not resume:
        raise CheckpointError(
            f"output: {folder} holds a run already;"
            " allowed: --resume to go on with it, or output=ANOTHER_FOLDER"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"output: {folder} cannot be written ({error.strerror})") from error
    return has_state


def describe_run(
    config: RunConfig | StreamConfig, *, counts: Mapping[str, int], **facts: Any
) -> dict[str, Any]:
    """Write config.yaml and run.json: what ran, its versions, its commit, its command.

    Args:
        facts: what else is known before the first step, by the names of ``experiments.RunFacts``.

    Returns:
        What run.json holds.
    """
    folder = config.output
    text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    record = {
        "scalepet": scalepet.__version__,
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": _git_commit(),
        "command": without_secrets(sys.argv),
        "world_size": dist.world_size(),
        "method": config.method.names,
        "counts": dict(counts),
        **facts,
    }
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def load_state(prepared: Resumable, folder: Path) -> RunState | None:
    """The state to go on from, where the run in the folder has one. All ranks together.

    Raises:
        CheckpointError: as ``engine.load_run_state``, on all ranks.
    """
    if not prepared.has_state:
        return None
    return dist.together(
        lambda: engine.load_run_state(folder / STATE, fingerprint=prepared.fingerprint)
    )


def open_logs(
    config: RunConfig | StreamConfig, record: Mapping[str, Any], *, last_step: int
) -> Trackers:
    """The trackers of the run, on rank 0.

    Args:
        record: what run.json holds; all but the command goes to wandb with the config.
        last_step: the step that the run resumes from, -1 for a fresh one.
    """
    if config.wandb.mode == "off":
        return open_trackers(config.output, last_step=last_step)
    known = {name: value for name, value in record.items() if name != "command"}
    return open_trackers(
        config.output,
        last_step=last_step,
        wandb_project=config.wandb.project,
        mode=config.wandb.mode,
        config={**plain(config), "run": known},
    )


def show_result(trackers: Trackers, result: Mapping[str, Any], *, adapters: Sequence[Path]) -> None:
    """Tell the trackers what is in result.json, and give them the adapters."""
    numbers = {name: value for name, value in result.items() if name != "metrics"}
    scores = {name.removeprefix("eval/"): value for name, value in result["metrics"].items()}
    trackers.conclude({**numbers, **scores})
    for folder in adapters:
        trackers.keep(folder)


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write result.json and the seal over all that reports read: the run has ended."""
    (folder / "result.json").write_text(json.dumps(dict(result), indent=2) + "\n", encoding="utf-8")
    seal(folder, _SEALED)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _git_commit() -> str | None:
    """The commit of the code, with a + where files differ from it; None outside of a checkout."""
    folder = Path(scalepet.__file__).parent
    try:
        head = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")
