"""What a stream reports: the accuracy on every experience after every later one, and its sums."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from scalepet.errors import CheckpointError
from scalepet.files import replace_file
from scalepet.reading import read_text

MATRIX_FILE = "matrix.json"
ONLINE = "online"
MEASURES = ("last_micro", "last_macro", "average_incremental", "forgetting", "bwt")


@dataclass(frozen=True)
class AccuracyMatrix:
    """a[i][j]: the accuracy on experience j after learning experience i, for j <= i.

    Predictions are over all classes seen so far; nothing tells them the experience. T is the last
    experience that was learnt.

    Args:
        num_rows: every experience of the stream by name, in order, and its evaluation rows.
        accuracies: a, as one tuple for each experience learnt, of 1, 2, 3, ... numbers in [0, 1].
    """

    num_rows: Mapping[str, int]
    accuracies: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.accuracies]
        assert lengths and lengths == list(range(1, len(lengths) + 1)), f"no triangle: {lengths}"
        assert len(lengths) <= len(self.num_rows), f"{len(lengths)} of {len(self.num_rows)} learnt"
        assert all(0 <= a <= 1 for row in self.accuracies for a in row), self.accuracies

    @property
    def micro_curve(self) -> tuple[float, ...]:
        """For every i, the share of right answers among all evaluation rows seen by then."""
        sizes = list(self.num_rows.values())
        return tuple(float(np.average(row, weights=sizes[: len(row)])) for row in self.accuracies)

    @property
    def last_micro(self) -> float:
        """Share of right answers among the evaluation rows of all experiences up to T, after T."""
        return self.micro_curve[-1]

    @property
    def last_macro(self) -> float:
        """Mean over j <= T of a[T][j]: every experience counts the same, whatever its size."""
        return float(np.mean(self.accuracies[-1]))

    @property
    def average_incremental(self) -> float:
        """Mean over i <= T of the micro accuracy after i: over all evaluation rows seen by then."""
        return float(np.mean(self.micro_curve))

    @property
    def forgetting(self) -> float | None:
        """Mean over j < T of (max over l < T of a[l][j]) - a[T][j]; T itself is left out, and with
        one experience there is none (Chaudhry et al. 2018, Riemannian Walk).
        """
        *earlier, last = self.accuracies
        best = [max(row[j] for row in earlier[j:]) for j in range(len(earlier))]
        return float(np.mean(np.subtract(best, last[:-1]))) if earlier else None

    @property
    def bwt(self) -> float | None:
        """Backward transfer, mean over j < T of a[T][j] - a[j][j]: below 0 where later experiences
        harm; with one experience there is none (Lopez-Paz and Ranzato 2017, GEM).
        """
        *earlier, last = self.accuracies
        return (
            float(np.mean(np.subtract(last[:-1], [row[-1] for row in earlier])))
            if earlier
            else None
        )

    def measures(self) -> dict[str, float | None]:
        """All that the matrix sums up to, by name."""
        return {name: getattr(self, name) for name in MEASURES}


@dataclass(frozen=True)
class Results:
    """The accuracy matrix of every expert: "online", "offline", "offline 2", ..., "ensemble".

    Args:
        num_rows: every experience of the stream by name, in order, and its evaluation rows.
        experts: their matrices, all with the same number of experiences learnt; at first none.
    """

    num_rows: Mapping[str, int]
    experts: Mapping[str, AccuracyMatrix] = field(default_factory=dict)

    @property
    def num_learnt(self) -> int:
        """How many experiences the results are about."""
        return len(self.experts[ONLINE].accuracies) if self.experts else 0

    def with_row(self, accuracies: Mapping[str, Sequence[float]]) -> Results:
        """The results one experience later.

        An expert that was not there before had the online one's rows until now: an offline copy
        starts as the online module.

        Args:
            accuracies: each expert's accuracy on every experience seen, the new one last. The
                online expert is always one of them, and none drops out.
        """
        missing = {ONLINE, *self.experts} - set(accuracies)
        assert not missing, f"no accuracies of {sorted(missing)}"
        online = self.experts[ONLINE].accuracies if self.experts else ()
        experts = {}
        for expert, row in accuracies.items():
            known = self.experts[expert].accuracies if expert in self.experts else online
            rows = (*known, tuple(float(accuracy) for accuracy in row))
            experts[expert] = AccuracyMatrix(self.num_rows, rows)
        return Results(self.num_rows, experts)

    def first(self, num_experiences: int) -> Results:
        """The results as they were after that many experiences: where a resumed run goes on."""
        assert 0 <= num_experiences <= self.num_learnt, f"{num_experiences} of {self.num_learnt}"
        if num_experiences == 0:
            return Results(self.num_rows)
        return Results(
            self.num_rows,
            {
                expert: AccuracyMatrix(self.num_rows, matrix.accuracies[:num_experiences])
                for expert, matrix in self.experts.items()
            },
        )

    def summary(self) -> dict[str, float]:
        """``{"ensemble/last_micro": 0.71, ...}`` of all experts, without what is undefined."""
        return {
            f"{expert}/{name}": value
            for expert, matrix in self.experts.items()
            for name, value in matrix.measures().items()
            if value is not None
        }

    def as_table(self) -> tuple[list[str], list[list[str | float]]]:
        """Column names, and every accuracy of every expert as a row."""
        names = list(self.num_rows)
        rows: list[list[str | float]] = [
            [expert, names[i], names[j], accuracy]
            for expert, matrix in self.experts.items()
            for i, row in enumerate(matrix.accuracies)
            for j, accuracy in enumerate(row)
        ]
        return ["expert", "after", "experience", "accuracy"], rows

    def to_json(self) -> str:
        """The matrices as JSON, a row a line, with the definitions of all measures."""
        experts = {expert: matrix.accuracies for expert, matrix in self.experts.items()}
        content = {
            "definitions": _definitions(),
            "num_rows": dict(self.num_rows),
            "experts": experts,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False)
        # Innermost lists, which are rows, on one line; a string never holds a bare newline.
        return re.sub(r"\[\n[^][]*\n *\]", _on_one_line, text) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Results:
        """What ``to_json`` wrote.

        Raises:
            CheckpointError: with every fault of the text, each after ``where``.
        """
        try:
            written = _Written.model_validate_json(text)
        except ValidationError as error:
            raise CheckpointError([_fault(where, dict(f)) for f in error.errors()]) from error
        experts = {
            expert: AccuracyMatrix(written.num_rows, tuple(map(tuple, rows)))
            for expert, rows in written.experts.items()
        }
        return cls(written.num_rows, experts)

    def write(self, folder: Path, *, workplace: Path | None = None) -> None:
        """Puts matrix.json into the folder, in place of the last; it is whole at any moment.

        Args:
            workplace: as for ``replace_file``.

        Raises:
            CheckpointError: if it cannot be written.
        """
        replace_file(folder / MATRIX_FILE, self.to_json(), workplace=workplace)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """The results in the folder's matrix.json.

        Raises:
            CheckpointError: if it is missing, or is not as ``write`` leaves it.
        """
        path = folder / MATRIX_FILE
        try:
            text = read_text(path, errors="replace")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        return cls.from_json(text, where=str(path))


Accuracy = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Written(BaseModel):
    """matrix.json."""

    model_config = ConfigDict(strict=True, extra="forbid")

    definitions: dict[str, str]
    num_rows: Annotated[dict[str, PositiveInt], Field(min_length=1)]
    experts: dict[str, list[list[Accuracy]]]

    @model_validator(mode="after")
    def _check_triangles(self) -> _Written:
        if self.experts and ONLINE not in self.experts:
            raise ValueError(f"experts are {list(self.experts)}, without {ONLINE!r}")
        num_learnt = len(self.experts.get(ONLINE, ()))
        if not bool(self.experts) <= num_learnt <= len(self.num_rows):
            raise ValueError(f"{num_learnt} rows for {len(self.num_rows)} experiences")
        for expert, rows in self.experts.items():
            lengths = [len(row) for row in rows]
            if lengths != list(range(1, num_learnt + 1)):
                raise ValueError(
                    f"{expert} has rows of {lengths}, not of 1 to {num_learnt} numbers"
                )
        return self


def _definitions() -> dict[str, str]:
    """The docstrings of the measures: what a reader of the file needs, said once."""
    named = {
        "a": AccuracyMatrix,
        **{name: getattr(AccuracyMatrix, name) for name in MEASURES},
    }
    texts = {name: inspect.getdoc(thing) or "" for name, thing in named.items()}
    return {name: " ".join(text.split("\n\nArgs:")[0].split()) for name, text in texts.items()}


def _on_one_line(match: re.Match[str]) -> str:
    return re.sub(r"\n *", " ", match[0]).replace("[ ", "[").replace(" ]", "]")


def _fault(where: str, fault: Mapping[str, Any]) -> str:
    field_name = ".".join(map(str, fault["loc"])) or "content"
    value = "" if fault["type"] in ("missing", "value_error") else f", not {fault['input']!r:.80}"
    return f"{where}: {field_name}: {fault['msg']}{value}"
