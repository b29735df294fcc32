"""What is learnt: plain values that say where rows come from and how they become examples."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from scalepet.data.metrics import METRICS
from scalepet.data.picture import Picture
from scalepet.data.template import parse_template, template_columns, template_fault

Kind = Literal["classification", "sequence_to_sequence", "image_classification"]
KINDS: tuple[Kind, ...] = ("classification", "sequence_to_sequence", "image_classification")

FILE_FORMATS = ("csv", "json", "parquet")
DEFAULT_LENGTH = 128
DEFAULT_SPLITS = {"train": "train", "eval": "validation"}
SPLITS = ("train", "eval", "test")


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Args:
        path: a hub id ("nyu-mll/glue"), a file format ("csv", "json", "parquet"; needs
            ``files``) or a local folder: made by ``save_to_disk``, or with data files in it, or
            with pictures in folders SPLIT/CLASS or CLASS. Its first level says the splits.
        subset: the configuration of a hub data set, such as "sst2".
        files: for a file format: split name -> local path, or a pattern where no file has that
            name, or a list of them.
        splits: our names -> split expressions of datasets, such as "train[:3000]". "train" is what
            is learnt, "eval" chooses the best step, and "test" is scored once, by the best
            adapter; what is not given is "train", "validation" and no test.
        held_out: so many rows leave the training split and are what chooses the best step;
            splits.eval is then not given.
        train_rows, eval_rows, test_rows: the most rows of a split, drawn from all of it; null for
            all.
        seed: of what is held out and drawn; rows of test are the same ones with every seed.
        skip_blank: leave out rows with an empty column of the template or target (null, NaN, white
            space, a list of nothing); else they are refused.
    """

    path: str
    _: KW_ONLY
    subset: str | None = None
    files: dict[str, str | list[str]] | None = None
    splits: dict[str, str] = field(default_factory=dict)
    held_out: int | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    test_rows: int | None = None
    seed: int = 0
    skip_blank: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Our names of the splits that there are."""
        return tuple(name for name in SPLITS if name in DEFAULT_SPLITS or name in self.splits)

    def expression(self, split: str) -> str:
        """The split expression behind one of our names; of "eval" that of "train" where its rows
        are held out.
        """
        if split == "eval" and self.held_out is not None:
            split = "train"
        return self.splits[split] if split in self.splits else DEFAULT_SPLITS[split]

    def faults(self) -> list[str]:
        """Everything wrong with these values, without a look at the disk."""
        faults = []
        is_files = self.path in FILE_FORMATS
        if not self.path:
            faults.append(f"task.source.path is empty; allowed: a hub id, {FILE_FORMATS}, a folder")
        if is_files and not self.files:
            faults.append(
                f"task.source.files is missing; {self.path!r} needs split names with files, "
                f"as in {{train: train.{self.path}, validation: validation.{self.path}}}"
            )
        if self.files and not is_files:
            faults.append(f"task.source.files goes with path {FILE_FORMATS}, not {self.path!r}")
        if self.subset is not None and is_files:
            faults.append(
                f"task.source.subset {self.subset!r} goes with a hub id, not {self.path!r}"
            )
        for name in sorted(self.splits.keys() - set(SPLITS)):
            faults.append(f"task.source.splits has {name!r}; allowed: {', '.join(SPLITS)}")
        return faults + self._row_faults()

    def _row_faults(self) -> list[str]:
        faults = [
            f"task.source.{name} is {value}; allowed: at least 1, or null"
            for name in ("held_out", "train_rows", "eval_rows", "test_rows")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if self.held_out is not None and "eval" in self.splits:
            faults.append(
                f"task.source.splits.eval is {self.splits['eval']!r} with task.source.held_out"
                f" {self.held_out}; allowed: one of them"
            )
        if self.test_rows is not None and "test" not in self.splits:
            faults.append(
                f"task.source.test_rows is {self.test_rows}; it goes with task.source.splits.test"
            )
        if not 0 <= self.seed < 2**64:
            faults.append(f"task.source.seed is {self.seed}; allowed: 0 to 2**64 - 1")
        return faults


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task as a plain value; nothing is read and nothing raised until it is used.

    As it stands in the file of a run::

        kind: classification
        source: {path: csv, files: {train: train.csv, validation: held_out.csv}}
        template: "Input: {premise} {hypothesis} Output: "
        target: label
        labels: [entailment, not_entailment]
        metrics: [accuracy]

    Args:
        kind: "classification", "sequence_to_sequence" or "image_classification".
        source: where the rows come from.
        template: the text of an example; column names in braces, literal braces doubled; a field
            inside of a column as in {translation.en}. Of image_classification the column of
            pictures alone, "{image}".
        target: the column with the label, or with the target text (or a list of right answers:
            the first is learnt, all of them are references); also a field inside of a column, as
            in answers.text.
        labels: class names or label words in class order; empty for classes found in the rows.
        label_values: raw value -> label word, where raw values are neither label words nor
            class numbers 0 .. K-1. Compared as text, so 1 and "1" are one key.
        metrics: names in ``METRICS``; the first one chooses the best checkpoint.
        max_source_length: tokens an example may have, special tokens included.
        max_target_length: tokens a target text may have, end token included.
        picture: how a picture becomes numbers (image_classification).
    """

    kind: Kind
    source: Source
    template: str
    target: str
    labels: tuple[str, ...] = ()
    label_values: dict[bool | int | str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy",)
    max_source_length: int = DEFAULT_LENGTH
    max_target_length: int = DEFAULT_LENGTH
    picture: Picture = field(default_factory=Picture)

    @property
    def source_columns(self) -> tuple[str, ...]:
        """The columns that the template uses."""
        return template_columns(self.template)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of an example and of its target."""
        return (*self.source_columns, self.target)

    @property
    def picture_column(self) -> str | None:
        """The column of pictures; None of a task of texts."""
        return self.source_columns[0] if self.kind == "image_classification" else None

    @property
    def has_classes(self) -> bool:
        """Whether answers are the names of classes."""
        return self.kind != "sequence_to_sequence"

    def faults(self) -> list[str]:
        """Everything wrong with this task and its source, without a look at the disk."""
        faults = self.source.faults()
        if self.kind not in KINDS:
            faults.append(f"task.kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        template = template_fault(self.template)
        if template is not None:
            faults.append(f"task.template {self.template!r}: {template}")
        if not self.target:
            faults.append("task.target is empty; allowed: the name of a column")
        is_of_pictures = self.kind == "image_classification"
        of_source = self._picture_faults() if is_of_pictures else self._text_faults()
        return faults + self._label_faults() + self._metric_faults() + of_source

    def _label_faults(self) -> list[str]:
        if self.kind == "sequence_to_sequence":
            given = {"labels": self.labels, "label_values": self.label_values}
            return [
                f"task.{name} {value!r} goes with kind classification, not {self.kind!r}"
                for name, value in given.items()
                if value
            ]
        faults = []
        if len(self.labels) == 1:
            faults.append(
                f"task.labels {self.labels!r}: at least two classes, or none to find them"
            )
        if len(set(self.labels)) < len(self.labels):
            faults.append(f"task.labels {self.labels!r}: a label word stands there twice")
        if not all(word.strip() for word in self.labels):
            faults.append(f"task.labels {self.labels!r}: a label word is blank")
        if len({str(value) for value in self.label_values}) < len(self.label_values):
            faults.append(f"task.label_values {self.label_values!r}: one value stands there twice")
        for value, word in self.label_values.items():
            if word not in self.labels:
                faults.append(
                    f"task.label_values maps {value!r} to {word!r}; "
                    f"allowed: {', '.join(self.labels) or 'nothing while task.labels is empty'}"
                )
        return faults

    def _metric_faults(self) -> list[str]:
        allowed = ", ".join(METRICS)
        faults = [
            f"task.metrics has {name!r}; allowed: {allowed}"
            for name in self.metrics
            if name not in METRICS
        ]
        if "f1" in self.metrics and (not self.has_classes or len(self.labels) not in (0, 2)):
            faults.append(
                f"task.metrics has 'f1' with {len(self.labels)} classes; allowed: two, of which it"
                " scores the last, or macro_f1 for more"
            )
        return faults if self.metrics else [f"task.metrics is empty; allowed: {allowed}"]

    def _picture_faults(self) -> list[str]:
        faults = []
        if template_fault(self.template) is None and parse_template(self.template) != [
            ("", self.picture_column)
        ]:
            faults.append(
                f"task.template {self.template!r}; allowed with kind {self.kind!r}: "
                'one column of pictures and nothing else, as in "{image}"'
            )
        if self.source.skip_blank:
            faults.append(f"task.source.skip_blank goes with kinds of texts, not {self.kind!r}")
        for name in ("max_source_length", "max_target_length"):
            value = getattr(self, name)
            if value != DEFAULT_LENGTH:
                faults.append(f"task.{name} {value} goes with kinds of texts, not {self.kind!r}")
        return faults + self.picture.faults()

    def _text_faults(self) -> list[str]:
        faults = [
            f"task.{name} is {getattr(self, name)}; allowed: at least {least} ({why})"
            for name, least, why in (
                ("max_source_length", 3, "a token between two special ones"),
                ("max_target_length", 2, "a token and the end token"),
            )
            if getattr(self, name) < least
        ]
        if self.picture != Picture():
            faults.append(f"task.picture goes with kind image_classification, not {self.kind!r}")
        return faults
