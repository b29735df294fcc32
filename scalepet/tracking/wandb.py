"""wandb, one run for the life of a run folder, which may fail without harm to the training."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scalepet.reading import read_text
from scalepet.tracking.jsonl import OWN_FIELDS
from scalepet.tracking.redact import without_secrets
from scalepet.tracking.wandb_files import read_history

WandbMode = Literal["online", "offline"]
Value = float | int | str
ID_FILE = "wandb_id"
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_STEP = "/step"
MAX_KEPT_BYTES = 200_000_000

SECONDS_TO_FINISH = 60.0
"""Where the network is gone wandb would wait for ever, with the job's devices."""

_logger = logging.getLogger(__name__)


class WandbTracker:
    """Sends records to wandb, or keeps them for ``wandb sync`` in ``folder``/wandb.

    The id of the wandb run lies in ``folder``/wandb_id: a resumed run goes on as the same wandb
    run. At its start wandb is given what it lacks of the run so far, and what it has it is never
    given again, however the last process ended: each record stands there once. The axis of a kind
    is a metric of its own, "train/step": the steps that wandb counts are rows, which it shifts when
    it syncs the parts of a run.

    Without a wandb key the mode is offline, and ``$WANDB_MODE`` overrides ``mode``. Whatever wandb
    raises ends this tracker with one warning, never the training. Only one process of a run may
    have one.

    Args:
        folder: the run folder.
        project: the wandb project.
        name: how wandb calls the run.
        mode: "online" or "offline".
        config: the resolved config and what else is known of the run; secrets in it are hidden.
        backlog: the records of the run so far, as in its metrics.jsonl.
        run_id: the id of the wandb run; by default that of the sweep's agent that started this
            process, the folder's own, or a new one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        name: str,
        mode: WandbMode,
        config: Mapping[str, Any],
        backlog: Sequence[Mapping[str, Any]] = (),
        run_id: str | None = None,
    ) -> None:
        self._run: Any = None
        self._folder = folder
        self._last_steps: dict[str, int] = {}
        self._with_axis: set[str] = set()
        self._guarded(lambda: self._start(project, name, mode, config, run_id))
        for record in backlog:
            values = {name: value for name, value in record.items() if name not in OWN_FIELDS}
            self.log(record["step"], values, kind=record["kind"])

    def log(self, step: int, values: Mapping[str, Value], *, kind: str) -> None:
        """Sends one record; a value "loss" of kind "train" becomes "train/loss"."""
        if self._run is None or step <= self._last_steps.get(kind, -1):
            return
        named = {n if "/" in n else f"{kind}/{n}": v for n, v in values.items()}
        self._guarded(lambda: self._send(step, without_secrets(named), kind))
        self._last_steps[kind] = step

    def picture(self, step: int, name: str, path: Path) -> None:
        """Sends a .png file as it is now; a name "matrix" becomes "pictures/matrix"."""

        def show(wandb: Any) -> None:
            self._send(step, {f"pictures/{name}": wandb.Image(str(path))}, "pictures")

        self._show(show)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None:
        """Sends a table under that name."""

        def show(wandb: Any) -> None:
            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._run.log({name: table})

        self._show(show)

    def conclude(self, result: Mapping[str, Value]) -> None:
        """Puts numbers into the summary, as "result/...": columns of wandb's table of runs."""
        named = {f"result/{name}": value for name, value in without_secrets(dict(result)).items()}
        self._show(lambda _: self._run.summary.update(named))

    def keep(self, folder: Path) -> None:
        """Sends the files of a folder, up to ``MAX_KEPT_BYTES``, as an artifact of its name."""

        def send(wandb: Any) -> None:
            num_bytes = sum(path.stat().st_size for path in folder.iterdir())
            if num_bytes > MAX_KEPT_BYTES:
                _logger.warning("%s has %d bytes, too many for wandb", folder, num_bytes)
                return
            artifact = wandb.Artifact(f"{self._run.id}-{folder.name}", type=folder.name)
            # The files are sent from where they are, also by a later `wandb sync`.
            artifact.add_dir(str(folder), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact)

        self._show(send)

    def close(self) -> None:
        """Ends the wandb run after all records have left, or ``SECONDS_TO_FINISH`` later."""
        if self._run is not None:
            self._guarded(lambda: self._run.finish())
            self._run = None

    def _start(
        self,
        project: str,
        name: str,
        mode: WandbMode,
        config: Mapping[str, Any],
        run_id: str | None,
    ) -> None:
        # Not above: the import takes a second, and even a broken wandb must not stop a run.
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        kept_id, usable = _keep_id(self._folder, run_id), _usable_mode(mode)
        self._run = wandb.init(
            dir=self._folder,
            project=project,
            name=name,
            id=kept_id,
            resume="allow",
            mode=usable,
            config=without_secrets(dict(config)),
            reinit="create_new",  # a study has one run after another in a process
            # Command line, git remote, code, package addresses, print: all may hold secrets.
            settings=wandb.Settings(
                console="off",
                finish_timeout=SECONDS_TO_FINISH,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        rows = [self._run.summary] if usable == "online" else read_history(self._folder, kept_id)
        for key, step in (item for row in rows for item in dict(row).items()):
            if key.endswith(_STEP):
                kind = key.removesuffix(_STEP)
                self._last_steps[kind] = max(self._last_steps.get(kind, -1), int(step))

        for kind in self._last_steps:
            self._make_axis(kind)

    def _send(self, step: int, named: Mapping[str, Any], kind: str) -> None:
        self._make_axis(kind)
        self._run.log({**named, kind + _STEP: step})

    def _make_axis(self, kind: str) -> None:
        if kind not in self._with_axis:
            self._run.define_metric(kind + _STEP, hidden=True)
            self._run.define_metric(f"{kind}/*", step_metric=kind + _STEP)
            self._with_axis.add(kind)

    def _show(self, call: Callable[[Any], None]) -> None:
        def with_wandb() -> None:
            import wandb

            with _staging_in(self._folder / "wandb"):
                call(wandb)

        if self._run is not None:
            self._guarded(with_wandb)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._run = None
            reason = without_secrets(f"{type(error).__name__}: {error}")
            _logger.warning(
                "wandb is off until this run is resumed, metrics.jsonl goes on: %s", reason
            )


@contextlib.contextmanager
def _staging_in(folder: Path) -> Iterator[None]:
    """wandb copies the files that it has yet to send into this folder, not into the home folder."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
        if before is not None:
            os.environ["WANDB_DATA_DIR"] = before


def _keep_id(folder: Path, run_id: str | None) -> str:
    """The id of the folder's wandb run, written there for the next start."""
    path = folder / ID_FILE
    kept = read_text(path).strip() if path.exists() else ""
    if kept and not _ID.fullmatch(kept):  # it becomes a part of file names
        raise ValueError(f"{path} holds {kept!r}; allowed: letters, digits, _ and -")
    # An agent has made the run already, and wandb takes no other id from its children.
    of_agent = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    chosen = run_id or of_agent or kept or uuid.uuid4().hex[:8]
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
