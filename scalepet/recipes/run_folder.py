"""What a run leaves behind: everything a table, a figure or the next process needs, as data."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import yaml
from rich.console import Console

import scalepet
from scalepet import dist, engine
from scalepet.config import RunConfig, StreamConfig, plain
from scalepet.engine import RunState, States
from scalepet.errors import CheckpointError
from scalepet.files import make_folder, put_right, replace_file, unwritable
from scalepet.owned import check_free
from scalepet.recipes.going_on import RECORDS, Accepted, check_goes_on
from scalepet.recipes.lock import Hold, one_run_in
from scalepet.tracking import Trackers, first_records, open_trackers, seal, without_secrets
from scalepet.tracking.rank_log import log_apart
from scalepet.tracking.seal import SEAL

ADAPTER = "adapter"
STATES = "states"
METRICS = "metrics.jsonl"

OPTIMIZER_FIELDS = (
    "learning_rate",
    "head_learning_rate",
    "weight_decay",
    "schedule",
    "warmup",
    "clip",
)
"""Of the section train: what moves the numbers of a step."""

_SEALED = ("config.yaml", "run.json", "cell.json", METRICS, "matrix.json", "result.json")
"""cell.json is what a study writes beside the run."""

_WRITTEN = (
    *("run.json", "config.yaml", METRICS, "result.json", SEAL, "matrix.json", "matrix.png"),
    *("curves.png", ADAPTER, f"{ADAPTER}-*", STATES, "non-finite", "logs/rank-*.log", "wandb_id"),
)
"""What runs and streams write, as patterns."""

_FREE_SECTIONS = ("output", "deepspeed", "wandb")
"""Of config.yaml: what may be another in each part of a run."""

_LIBRARIES = ("torch", "deepspeed", "transformers", "datasets", "numpy")


class Resumable(Protocol):
    """A run that is ready to load its weights."""

    @property
    def acceptable(self) -> Sequence[str]:
        """Parts of the fingerprint that may change where the user says so."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What may not change between its parts."""


def open_run_folder(folder: Path, *, resume: bool) -> None:
    """Make the folder, once it is known that a run may begin or go on in it.

    Raises:
        CheckpointError: it cannot be written, holds a run already and ``resume`` is not asked for,
            or has files that a run would write and scalepet did not make.
    """
    written = [str(path.relative_to(folder)) for path in written_by_run(folder)]
    if not _is_run(folder):
        check_free(folder, written)
    elif written and not resume:
        raise CheckpointError(
            f"output: {folder} holds a run already;"
            " allowed: --resume to go on with it, or output=ANOTHER_FOLDER"
        )
    try:
        make_folder(folder)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"output: {folder} cannot be written ({error.strerror})") from error


def written_by_run(folder: Path) -> list[Path]:
    """What is there under a name that a run or a stream writes."""
    there = [*folder.glob("*"), *folder.glob("logs/*")]  # links to nothing, too
    return [path for path in there if any(path.match(name) for name in _WRITTEN)]


def _is_run(folder: Path) -> bool:
    """Whether scalepet has begun a run there: it says so in run.json first of all, and the states
    that it saves are known by their records.
    """
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if isinstance(record, dict) and {"scalepet", "command", "counts"} <= record.keys():
            return True
    return _has_states(folder)


def describe_run(
    config: RunConfig | StreamConfig,
    *,
    counts: Mapping[str, int],
    workplace: Path | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Write config.yaml and run.json: what ran, its versions, its commit, its command.

    Args:
        workplace: as for ``replace_file``.
        facts: what else is known before the first step, by the names of ``experiments.RunFacts``.

    Returns:
        What run.json holds.

    Raises:
        CheckpointError: one of them cannot be written.
    """
    folder = config.output
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
    replace_file(folder / "run.json", json.dumps(record, indent=2) + "\n", workplace=workplace)
    replace_file(folder / "config.yaml", config_as_yaml(config), workplace=workplace)
    return record


def config_as_yaml(config: RunConfig | StreamConfig) -> str:
    """What config.yaml holds."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


@contextlib.contextmanager
def alone_in(folder: Path, *, resume: bool, console: Console) -> Iterator[Hold]:
    """As ``one_run_in``; another run may have begun and ended there since the folder was opened.
    All ranks but the first say what they say from now on into files there.

    Raises:
        CheckpointError: as ``open_run_folder`` and ``one_run_in``.
    """
    with one_run_in(folder, say=partial(say, console)) as hold:
        dist.together(lambda: open_run_folder(folder, resume=resume) if dist.is_main() else None)
        dist.together(lambda: _put_adapters_right(folder) if dist.is_main() else None)
        log_apart(folder, rank=dist.rank())
        yield hold


def _put_adapters_right(folder: Path) -> None:
    """Where 0.1 died while it replaced one."""
    for old in folder.glob(f"{ADAPTER}*.old"):
        with writing(old):
            put_right(old.with_suffix(""))


def load_state(
    prepared: Resumable, folder: Path, *, resume: bool, accept: Sequence[str], console: Console
) -> tuple[RunState | None, Accepted]:
    """The newest whole state, where the run is to go on from one, and what has changed since then
    and is accepted. All ranks together.

    Raises:
        CheckpointError: there are states but none is whole, or it belongs to another run.
    """
    if not resume:
        return None, {}
    state, faults = engine.newest_state(folder / STATES)
    if state is None:
        return None, {}
    if faults and dist.is_main():
        say(console, f"{'; '.join(faults)}; going on from {state.folder.name}")
    accepted = dist.together(
        lambda: {
            **check_goes_on(
                state, prepared.fingerprint, accept=accept, acceptable=prepared.acceptable
            ),
            **_lost_records(state, folder, is_accepted=RECORDS in accept),
        }
    )
    return state, accepted


def has_ended(config: RunConfig | StreamConfig, *, resume: bool, console: Console) -> bool:
    """Whether the run has ended and its states are gone, so that nothing is left to do; rank 0 says
    so. All ranks together.

    Raises:
        CheckpointError: it was another run: begun anew, it would write over that result.
    """
    folder = config.output
    ended = dist.together(lambda: resume and dist.is_main() and _is_sealed_as(config))
    if ended:
        say(console, f"{folder}: the run has ended; result.json has what came out")
    return dist.broadcast_object(ended)


def fingerprint_of(prepared: Resumable, trackers: Trackers) -> dict[str, Any]:
    """What a state keeps to tell whether it may be gone on from: also the records that the run has
    logged by then.

    Raises:
        CheckpointError: one of them is not on the disk and cannot be written, so that no state may
            rely on it; on all ranks alike.
    """
    dist.together(trackers.sync)
    metrics = {} if trackers.seen is None else {RECORDS: trackers.seen._asdict()}
    return {**prepared.fingerprint, **metrics}


def _lost_records(state: RunState, folder: Path, *, is_accepted: bool) -> Accepted:
    """What metrics.jsonl lacks of what it held when the state was saved.

    Raises:
        CheckpointError: that is not accepted.
    """
    known = state.fingerprint.get(RECORDS)  # not in the states of 0.1
    if known is None or not dist.is_main():
        return {}
    seen = first_records(folder / METRICS, known["num_records"])
    if seen._asdict() == known:
        return {}
    was, now = f"{known['num_records']} records", f"{seen.num_records} of them"
    if seen.num_records == known["num_records"]:
        now = "others"
    if not is_accepted:
        raise CheckpointError(
            f"{folder / METRICS} held {was} when {state.folder.name} was saved, and has {now} now;"
            f" allowed: the file as it was, or --accept {RECORDS} to go on without them"
        )
    return {RECORDS: f"was {was}, is {now}"}


def _has_states(folder: Path) -> bool:
    return bool(engine.saved_steps(folder / STATES))


def _is_sealed_as(config: RunConfig | StreamConfig) -> bool:
    """
    Raises:
        CheckpointError: the run that has ended there had another config.
    """
    folder = config.output
    if not (folder / SEAL).exists() or _has_states(folder):
        return False
    try:
        then = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        then = {}
    now = yaml.safe_load(config_as_yaml(config))
    differing = [name for name in now if name not in _FREE_SECTIONS and now[name] != then.get(name)]
    if differing:
        raise CheckpointError(
            f"output: the run in {folder} has ended, without a state to go on from, and its"
            f" {', '.join(differing)} was another one; allowed: output=ANOTHER_FOLDER"
        )
    return True


def states_of(config: RunConfig | StreamConfig, hold: Hold) -> States:
    """Where the states of the run go."""
    return States(
        config.output / STATES,
        keep=config.train.keep_states,
        workplace=hold.workplace,
        guard=hold.check,
    )


def log_accepted(trackers: Trackers, num_steps: int, accepted: Accepted) -> None:
    """Write into metrics.jsonl that the run goes on from there with something changed."""
    if accepted:
        trackers.log(num_steps, accepted, kind="accept")


def say(console: Console, words: str) -> None:
    """One line as it is, however long."""
    console.print(words, soft_wrap=True, markup=False, highlight=False)


def open_logs(
    config: RunConfig | StreamConfig,
    record: Mapping[str, Any],
    *,
    last_step: int,
    workplace: Path | None,
) -> Trackers:
    """The trackers of the run, on rank 0.

    Args:
        record: what run.json holds; all but the command goes to wandb with the config.
        last_step: the step that the run resumes from, -1 for a fresh one.
        workplace: as for ``replace_file``.
    """
    if config.wandb.mode == "off":
        return open_trackers(config.output, last_step=last_step, workplace=workplace)
    known = {name: value for name, value in record.items() if name != "command"}
    return open_trackers(
        config.output,
        last_step=last_step,
        workplace=workplace,
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


def write_result(folder: Path, result: Mapping[str, Any], *, workplace: Path | None) -> None:
    """Write result.json and the seal over all that reports read: the run has ended.

    Args:
        workplace: as for ``replace_file``.

    Raises:
        CheckpointError: one of them cannot be written.
    """
    text = json.dumps(dict(result), indent=2) + "\n"
    replace_file(folder / "result.json", text, workplace=workplace)
    seal(folder, _SEALED, workplace=workplace)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses inside becomes a CheckpointError that names the path."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


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
