"""Use saved adapters: score them on a labelled split, or let them answer.

With or without DeepSpeed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from scalepet import backbones, build, data, dist, engine
from scalepet.backbones import Loaded
from scalepet.build import Plan
from scalepet.data import Examples, Rows, Source, Task
from scalepet.engine import Answers, Track
from scalepet.errors import CheckpointError, ConfigError, Faults
from scalepet.files import replace_file
from scalepet.lae import Vote, experts, voted
from scalepet.recipes import screen
from scalepet.recipes.adapter import Adapter, load_adapter, open_adapter
from scalepet.recipes.run_folder import written_by_run


@dataclass(frozen=True)
class Ready:
    """A model with its adapter on.

    Attributes:
        is_sharded: every forward takes all ranks.
        track: shows the progress of the batches.
        vote: how several adapters that are on it decide together.
    """

    plan: Plan
    model: nn.Module
    device: torch.device
    is_sharded: bool
    track: Track
    vote: Vote | None = None

    def answer(self, encoded: Examples) -> Answers:
        answerer = build.answerer_of(self.plan, all_ranks_together=self.is_sharded)
        if self.vote is not None:
            scores = voted(answerer.class_scores, self.vote)
            answerer = dataclasses.replace(answerer, class_scores=scores)
        return engine.answer_all(
            self.model,
            encoded,
            answerer,
            micro_batch_size=self.plan.config.evaluate.micro_batch_size,
            pad_id=self.plan.pad_id,
            device=self.device,
            track=self.track,
        )

    def score(self, encoded: Examples) -> dict[str, float]:
        """The metrics of the task and the loss, the same on every rank."""
        answers = self.answer(encoded)
        assert answers.loss is not None
        scores = data.score(
            self.plan.task.metrics,
            predictions=answers.texts,
            references=encoded.references,
            labels=self.plan.task.labels,
        )
        return {**scores, "loss": answers.loss}

    def encode(self, rows: Rows, *, labelled: bool) -> Examples:
        return data.encode(
            self.plan.task,
            rows,
            tokenizer=self.plan.tokenizer,
            form=self.plan.form,
            labelled=labelled,
        )


@dataclass(frozen=True)
class Wearer:
    """A backbone that is in memory once and wears one adapter after another: over all ranks as the
    DeepSpeed file says where a launcher started several, else whole in this process, without
    DeepSpeed.
    """

    adapters: Sequence[Adapter]
    loaded: Loaded
    ds_config: Mapping[str, Any]
    device: torch.device
    vote: Vote | None

    def wearing(self) -> Iterator[Ready]:
        """The backbone with each adapter in turn; each is taken off before the next one comes. Or
        once, with all of them, where they vote.
        """
        model, is_sharded = self.loaded.model, engine.zero_stage(self.ds_config) == 3
        track = screen.bar(Console(stderr=True))  # what is asked for goes to stdout
        for adapter in self.adapters if self.vote is None else self.adapters[:1]:
            with backbones.recording_additions(model) as additions:
                build.attach(adapter.plan.method, adapter.head_of(self.loaded))
            try:
                dist.together(partial(load_adapter, model, adapter), has_collectives=True)
                with engine.untrained(model, self.ds_config, self.device), self._all_on():
                    yield Ready(adapter.plan, model, self.device, is_sharded, track, self.vote)
            finally:
                backbones.detach(model, additions)

    def _all_on(self) -> contextlib.AbstractContextManager[None]:
        if self.vote is None:
            return contextlib.nullcontext()
        tensors = [adapter.tensors for adapter in self.adapters]
        return experts(self.loaded.model, tensors, device=self.device)


@contextmanager
def wearer_of(
    folders: Sequence[Path],
    *,
    overrides: Mapping[str, Any],
    other_weights: bool = False,
    vote: Vote | None = None,
) -> Iterator[Wearer]:
    """The backbone of one or more adapters.

    Args:
        vote: let all adapters decide together, each of which has learnt the same classes with the
            same method.

    Raises:
        ScalepetError: as ``open_adapter``, or they are not of one backbone; on all ranks alike.
    """
    launched = engine.is_launched()
    with engine.joined() if launched else contextlib.nullcontext(engine.pick_device()) as device:
        adapters = dist.together(lambda: _open_all(folders, overrides, other_weights))
        if vote is not None:
            dist.together(lambda: _check_voters(adapters))
        plan = adapters[0].plan
        ds_config = build.ds_config_for_answers(plan) if launched else {}
        loaded = build.load_backbone(plan, ds_config)
        yield Wearer(adapters, loaded, ds_config, device, vote)


def _open_all(
    folders: Sequence[Path], overrides: Mapping[str, Any], other_weights: bool
) -> list[Adapter]:
    faults = Faults()
    adapters = []
    for folder in folders:
        with faults.noted():
            adapters.append(open_adapter(folder, overrides=overrides, other_weights=other_weights))
    if faults:
        raise CheckpointError(faults)
    first = adapters[0]
    for adapter in adapters[1:]:
        faults.extend(_differences(first, adapter))
    if len(adapters) > 1:
        faults.extend(
            f"{adapter.folder} holds the backbone's own weights; allowed: by itself"
            for adapter in adapters
            if not adapter.keeps_backbone
        )
    if faults:
        raise CheckpointError(faults)
    return adapters


def _differences(first: Adapter, other: Adapter) -> Iterator[str]:
    """Why two adapters cannot be worn by one backbone in memory."""
    for what, one, two in (
        ("backbone", first.plan.backbone_fingerprint, other.plan.backbone_fingerprint),
        ("precision", first.plan.config.precision, other.plan.config.precision),
        ("number of classes", first.plan.backbone.num_classes, other.plan.backbone.num_classes),
    ):
        if one != two:
            yield f"{other.folder}: {what} {two}, but {first.folder}: {one}; allowed: the same"


def _check_voters(adapters: Sequence[Adapter]) -> None:
    """Raises CheckpointError where adapters cannot decide together."""
    first = adapters[0]
    faults = []
    if len(adapters) < 2:
        faults.append(f"--vote with {first.folder} alone; allowed: two adapters or more (--also)")
    if not first.plan.task.labels:
        faults.append(f"--vote: {first.folder} writes text; allowed: adapters that choose a class")
    for other in adapters[1:]:
        for what, one, two in (
            ("method", first.plan.method.record(), other.plan.method.record()),
            ("classes", first.plan.task.labels, other.plan.task.labels),
        ):
            if one != two:
                faults.append(
                    f"--vote: {other.folder}: {what} {two}, but {first.folder}: {one};"
                    " allowed: the same"
                )
        if other.positions != first.positions:
            faults.append(
                f"--vote: the mask of {other.folder} has other positions than that of"
                f" {first.folder}; allowed: the same"
            )
    if faults:
        raise CheckpointError(faults)


def evaluate_adapters(folders: Sequence[Path], **options: Any) -> list[dict[str, float]]:
    """Scores and loss of each adapter on the evaluation split of its task, as in its config or as
    the overrides make it.

    Args:
        options: as for ``wearer_of``.
    """
    results = []
    with wearer_of(folders, **options) as wearer:
        for ready in wearer.wearing():
            encoded = dist.together(partial(_encoded_split, ready))
            results.append({**ready.score(encoded), "rows": encoded.num_rows})
    return results


def _encoded_split(ready: Ready) -> Examples:
    task = ready.plan.task
    rows = data.load_split(task.source, "eval", pictures=task.picture_column, columns=task.columns)
    return ready.encode(rows, labelled=True)


def predict(
    folders: Sequence[Path],
    *,
    texts: Sequence[str] = (),
    file: Path | None = None,
    into: Path | None = None,
    **options: Any,
) -> list[list[str]]:
    """Of each adapter one answer a row, in order, the same on every rank.

    Args:
        texts: rows of a task whose template has one column; or
        file: csv, json lines or parquet with the columns of the template, which of a task of
            pictures are paths relative to it; the target is not needed.
        into: where rank 0 writes them, see ``write_answers``.
        options: as for ``wearer_of``.

    Raises:
        ConfigError: a text alone is no row of this task, or the file is of an unknown kind.
        CheckpointError: the answers cannot be written; on all ranks alike.
    """
    if file:
        rows_of_file(file)  # a bad one is found before anything loads
    answers = []
    with wearer_of(folders, **options) as wearer:
        for ready in wearer.wearing():
            encoded = dist.together(partial(_encoded_rows, ready, file, texts))
            answers.append(ready.answer(encoded).texts)
        if into is not None:
            engine.on_main(partial(write_answers, into, answers))
    return answers


def _encoded_rows(ready: Ready, file: Path | None, texts: Sequence[str]) -> Examples:
    task = ready.plan.task
    if file is None:
        rows = _rows_of_texts(texts, task)
    else:
        rows = rows_of_file(file, pictures=task.picture_column)
    return ready.encode(rows, labelled=False)


def rows_of_file(file: Path, *, pictures: str | None = None) -> Rows:
    """All rows of a csv, json lines or parquet file.

    Args:
        pictures: as for ``load_split``.
    """
    kinds = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    ending = file.suffix.lower()
    if ending not in kinds:
        raise ConfigError(
            f"--input {file}: {file.suffix!r} files are unknown; allowed: {', '.join(kinds)}"
        )
    if not file.is_file():  # else its name would be a pattern
        raise ConfigError(f"--input {file} is no file; allowed: {', '.join(kinds)} files")
    source = Source(kinds[ending], files={"rows": str(file)}, splits={"eval": "rows"})
    return data.load_split(source, "eval", pictures=pictures)


def _rows_of_texts(texts: Sequence[str], task: Task) -> Rows:
    columns = task.source_columns
    if task.picture_column is not None:
        raise ConfigError(
            "--text: the task is one of pictures; allowed: --input FILE with their paths in the"
            f" column {task.picture_column!r}"
        )
    if len(columns) != 1:
        raise ConfigError(
            f"--text: the template {task.template!r} needs the columns {', '.join(columns)};"
            " allowed: --input FILE"
        )
    return data.rows_of({columns[0]: list(texts)})


def write_answers(path: Path, answers: Sequence[Sequence[str]]) -> None:
    """One JSON line a row: its number in the input and the answer, or those of several adapters.

    Args:
        answers: of each adapter one answer a row.

    Raises:
        CheckpointError: the file cannot be written.
    """
    rows = enumerate(zip(*answers, strict=True))
    lines = (
        json.dumps(
            {"row": row, "answer": given[0] if len(given) == 1 else given}, ensure_ascii=False
        )
        for row, given in rows
    )
    replace_file(path, "".join(f"{line}\n" for line in lines))


def read_files(folders: Sequence[Path]) -> list[Path]:
    """The files of adapters, or of the runs that hold them."""
    found: list[Path] = []
    for folder in folders:
        is_adapter = (folder / engine.RECORD_FILE).exists()
        for path in [folder] if is_adapter else written_by_run(folder):
            found += path.iterdir() if path.is_dir() else [path]
    return found
