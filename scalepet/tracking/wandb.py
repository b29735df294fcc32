"""wandb, one run for the life of a run folder, which may fail without harm to the training."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from scalepet.tracking.redact import without_secrets

WandbMode = Literal["online", "offline"]
ID_FILE = "wandb_id"

_logger = logging.getLogger(__name__)


class WandbTracker:
    """Sends records to wandb, or keeps them for ``wandb sync`` in ``folder``/wandb.

    The id of the wandb run lies in ``folder``/wandb_id: a resumed run goes on as the same wandb
    run. Without a wandb key the mode is offline, and ``$WANDB_MODE`` overrides ``mode``. Whatever
    wandb raises ends this tracker with one warning, never the training. Only one process of a run
    may have one.

    Args:
        folder: the run folder.
        project: the wandb project.
        name: how wandb calls the run.
        mode: "online" or "offline".
        config: the resolved config; secrets in it are hidden.
        run_id: the id of the wandb run; by default the folder's own, or a new one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        name: str,
        mode: WandbMode,
        config: Mapping[str, Any],
        run_id: str | None = None,
    ) -> None:
        self._run: Any = None
        self._guarded(lambda: self._start(folder, project, name, mode, config, run_id))

    def log(self, step: int, values: Mapping[str, float | int | str], *, kind: str) -> None:
        """Sends one record; a value "loss" of kind "train" becomes "train/loss"."""
        if self._run is not None:
            named = {n if "/" in n else f"{kind}/{n}": v for n, v in values.items()}
            self._guarded(lambda: self._run.log(without_secrets(named), step=step))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Sends a .png file as it is now, under that name ("stream/matrix")."""
        if self._run is not None:
            self._guarded(lambda: self._show(step, name, path))

    def close(self) -> None:
        """Ends the wandb run after all records have left."""
        if self._run is not None:
            self._guarded(lambda: self._run.finish())
            self._run = None

    def _start(
        self,
        folder: Path,
        project: str,
        name: str,
        mode: WandbMode,
        config: Mapping[str, Any],
        run_id: str | None,
    ) -> None:
        # Not above: the import takes a second, and even a broken wandb must not stop a run.
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            dir=folder,
            project=project,
            name=name,
            id=_keep_id(folder, run_id),
            resume="allow",
            mode=_usable_mode(mode),
            config=without_secrets(dict(config)),
            reinit="create_new",  # a study has one run after another in a process
            # Command line, git remote, code, package addresses, print: all may hold secrets.
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )

    def _show(self, step: int, name: str, path: Path) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path))}, step=step)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._run = None
            reason = without_secrets(f"{type(error).__name__}: {error}")
            _logger.warning(
                "wandb is off for the rest of this run, metrics.jsonl goes on: %s", reason
            )


def _keep_id(folder: Path, run_id: str | None) -> str:
    """The id of the folder's wandb run, written there for the next start."""
    path = folder / ID_FILE
    kept = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    chosen = run_id or kept or uuid.uuid4().hex[:8]
    if chosen != kept:
        path.write_text(chosen + "\n", encoding="utf-8")
    return chosen


def _usable_mode(mode: WandbMode) -> Any:
    import wandb

    wanted = os.environ.get("WANDB_MODE") or mode
    if wanted != "online" or wandb.login(prompt=False, verify=False):
        return wanted
    _logger.warning("wandb has no key here: the run is kept in its folder, for `wandb sync`")
    return "offline"
