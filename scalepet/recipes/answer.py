"""Use a saved adapter: score it on a labelled split, or let it answer.

With or without DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scalepet import build, data, dist, engine
from scalepet.build import Plan
from scalepet.data import Encoded, Rows, Source, Task
from scalepet.engine import Answers
from scalepet.errors import CheckpointError, ConfigError
from scalepet.recipes.adapter import load_adapter, open_adapter


@dataclass(frozen=True)
class Ready:
    """A model with its adapter on.

    Attributes:
        is_sharded: every forward takes all ranks.
    """

    plan: Plan
    model: nn.Module
    device: torch.device
    is_sharded: bool

    def answer(self, encoded: Encoded) -> Answers:
        return engine.answer_all(
            self.model,
            encoded,
            build.answerer_of(self.plan, all_ranks_together=self.is_sharded),
            micro_batch_size=self.plan.config.evaluate.micro_batch_size,
            pad_id=self.plan.tokenizer.pad_token_id,
            device=self.device,
        )

    def score(self, encoded: Encoded) -> dict[str, float]:
        """The metrics of the task and the loss, the same on every rank."""
        answers = self.answer(encoded)
        assert answers.loss is not None
        scores = data.score(
            self.plan.task.metrics, predictions=answers.texts, references=encoded.references
        )
        return {**scores, "loss": answers.loss}

    def encode(self, rows: Rows, *, labelled: bool) -> Encoded:
        return data.encode(
            self.plan.task,
            rows,
            tokenizer=self.plan.tokenizer,
            form=self.plan.form,
            labelled=labelled,
        )


@contextmanager
def ready_adapter(
    folder: Path, *, overrides: Mapping[str, Any], other_weights: bool = False
) -> Iterator[Ready]:
    """The adapter on its backbone: over all ranks as the DeepSpeed file says where a launcher
    started several, else whole in this process, without DeepSpeed.

    Raises:
        ScalepetError: as ``open_adapter`` and ``load_adapter``, on all ranks alike.
    """
    launched = engine.is_launched()
    device = engine.join_processes() if launched else engine.pick_device()
    adapter = dist.together(
        lambda: open_adapter(folder, overrides=overrides, other_weights=other_weights)
    )
    plan = adapter.plan
    ds_config = build.ds_config_for_answers(plan) if launched else {}
    model, _ = dist.together(lambda: build.load_and_attach(plan, ds_config))
    dist.together(lambda: load_adapter(model, adapter, folder=folder))
    is_sharded = engine.zero_stage(ds_config) == 3
    model = engine.shard_for_answers(model, ds_config) if is_sharded else model.to(device)
    yield Ready(plan, model, device, is_sharded)
    engine.leave_processes()


def evaluate_adapter(folder: Path, **options: Any) -> dict[str, float]:
    """Scores and loss on the evaluation split of the task, as in its config or as the overrides
    make it.

    Args:
        options: as for ``ready_adapter``.
    """
    with ready_adapter(folder, **options) as ready:
        source = ready.plan.task.source
        encoded = dist.together(
            lambda: ready.encode(data.load_split(source, "eval"), labelled=True)
        )
        return {**ready.score(encoded), "rows": encoded.num_rows}


def predict(
    folder: Path, *, texts: Sequence[str] = (), file: Path | None = None, **options: Any
) -> list[str]:
    """One answer a row, in order, the same on every rank.

    Args:
        texts: rows of a task whose template has one column; or
        file: csv, json lines or parquet with the columns of the template; the target is not needed.
        options: as for ``ready_adapter``.

    Raises:
        ConfigError: a text alone is no row of this task, or the file is of an unknown kind.
    """
    file_rows = rows_of_file(file) if file else None  # a bad file is found before anything loads
    with ready_adapter(folder, **options) as ready:
        rows = _rows_of_texts(texts, ready.plan.task) if file_rows is None else file_rows
        encoded = dist.together(lambda: ready.encode(rows, labelled=False))
        return ready.answer(encoded).texts


def rows_of_file(file: Path) -> Rows:
    """All rows of a csv, json lines or parquet file."""
    kinds = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    if file.suffix not in kinds:
        raise ConfigError(
            f"--input {file}: {file.suffix!r} files are unknown; allowed: {', '.join(kinds)}"
        )
    source = Source(kinds[file.suffix], files={"rows": str(file)}, splits={"eval": "rows"})
    return data.load_split(source, "eval")


def _rows_of_texts(texts: Sequence[str], task: Task) -> Rows:
    columns = task.source_columns
    if len(columns) != 1:
        raise ConfigError(
            f"--text: the template {task.template!r} needs the columns {', '.join(columns)};"
            " allowed: --input FILE"
        )
    return data.rows_of({columns[0]: list(texts)})


def write_answers(path: Path, answers: Sequence[str]) -> None:
    """One JSON line a row: its number in the input and the answer.

    Raises:
        CheckpointError: the file cannot be written.
    """
    lines = (
        json.dumps({"row": row, "answer": answer}, ensure_ascii=False)
        for row, answer in enumerate(answers)
    )
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"--output {path} cannot be written ({error.strerror})") from error
