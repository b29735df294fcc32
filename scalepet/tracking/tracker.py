"""What a tracker is, several as one, and how a run opens its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from scalepet.tracking.jsonl import JsonlTracker, Seen, read_records
from scalepet.tracking.wandb import WandbMode, WandbTracker

Value = float | int | str
METRICS_FILE = "metrics.jsonl"


class Tracker(Protocol):
    """Takes what a run measures. One process writes; no call waits for another rank."""

    def log(self, step: int, values: Mapping[str, Value], *, kind: str) -> None:
        """Records values of one step; ``kind`` says what made them: "train", "eval", ..."""

    def close(self) -> None:
        """Writes what is left. Nothing is logged afterwards."""


class Gallery(Tracker, Protocol):
    """A tracker that also shows what lies in the run folder as files, and so needs no record."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Shows a .png file of one step."""

    def conclude(self, result: Mapping[str, Value]) -> None:
        """What came out of the run, as numbers by name."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """Shows a table; a column holds numbers or texts."""

    def keep(self, folder: Path) -> None:
        """Keeps the files of a folder, such as an adapter."""


class Trackers:
    """Several trackers as one; with none, a tracker that keeps nothing (for other ranks)."""

    def __init__(
        self, trackers: Sequence[JsonlTracker] = (), galleries: Sequence[Gallery] = ()
    ) -> None:
        self._files = tuple(trackers)
        self._galleries = tuple(galleries)
        self._trackers: tuple[Tracker, ...] = (*trackers, *galleries)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, values: Mapping[str, Value], *, kind: str) -> None:
        for tracker in self._trackers:
            tracker.log(step, values, kind=kind)

    def check(self) -> None:
        """
        Raises:
            CheckpointError: as ``JsonlTracker.check``; what else shows a run may fail.
        """
        for file in self._files:
            file.check()

    def sync(self) -> None:
        """Returns once every record is on the disk.

        Raises:
            CheckpointError: as ``JsonlTracker.sync``.
        """
        for file in self._files:
            file.sync()

    @property
    def seen(self) -> Seen | None:
        """What metrics.jsonl holds so far; None on ranks that do not write it."""
        return self._files[0].seen if self._files else None

    def picture(self, step: int, name: str, path: Path) -> None:
        for gallery in self._galleries:
            gallery.picture(step, name, path)

    def conclude(self, result: Mapping[str, Value]) -> None:
        for gallery in self._galleries:
            gallery.conclude(result)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        for gallery in self._galleries:
            gallery.table(name, columns, rows)

    def keep(self, folder: Path) -> None:
        for gallery in self._galleries:
            gallery.keep(folder)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def open_trackers(
    folder: Path,
    *,
    last_step: int = -1,
    workplace: Path | None = None,
    wandb_project: str | None = None,
    name: str | None = None,
    mode: WandbMode = "online",
    config: Mapping[str, Any] | None = None,
) -> Trackers:
    """The trackers of the run in ``folder``: metrics.jsonl, and wandb if it has a project.

    Args:
        folder: the run folder.
        last_step: the step that the run resumes from; later records are dropped, and by default
            all are.
        workplace: as for ``replace_file``.
        wandb_project: where wandb shows the run; None leaves wandb out.
        name: how wandb calls the run; the folder's name by default.
        mode: "offline" keeps wandb's files in the folder until ``wandb sync``.
        config: the resolved config of the run, for wandb; secrets in it are hidden.

    Raises:
        CheckpointError: if the folder's metrics.jsonl is broken before its last line.
    """
    records = JsonlTracker(folder / METRICS_FILE, workplace=workplace)
    records.truncate_after(last_step)
    if wandb_project is None:
        return Trackers([records])
    online = WandbTracker(
        folder,
        project=wandb_project,
        name=name or folder.name,
        mode=mode,
        config=config or {},
        backlog=read_records(records.path),
    )
    return Trackers([records], [online])
