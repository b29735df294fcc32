"""Pictures in folders: the class of each is the first level below its split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalepet.data.folders import Layout, is_metadata
from scalepet.data.rows import listed
from scalepet.data.tables import load_tables
from scalepet.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

FILE_NAME = "file_name"
"""The column of a metadata file that names the picture of a row."""


def load_pictures(layout: Layout) -> DatasetDict:
    """A table for each split: "image" and "label", whose classes are those of all splits, by name;
    or, where metadata files say what the pictures show, "image" and their columns.

    Raises:
        DataError: pictures without a class folder; metadata and pictures that do not fit.
    """
    from datasets import DatasetDict

    if any(is_metadata(file) for files in layout.splits.values() for file in files):
        return DatasetDict(
            {split: _described(split, files) for split, files in layout.splits.items()}
        )
    classes = {
        split: [_class_of(file, layout.roots[split]) for file in files]
        for split, files in layout.splits.items()
    }
    _check_classes(layout, classes)
    names = sorted({name for found in classes.values() for name in found if name})
    return DatasetDict(
        {
            split: _labelled(files, [name or "" for name in classes[split]], names)
            for split, files in layout.splits.items()
        }
    )


def _class_of(file: Path, root: Path) -> str | None:
    parts = file.relative_to(root).parts
    return parts[0] if len(parts) > 1 else None


def _check_classes(layout: Layout, classes: Mapping[str, Sequence[str | None]]) -> None:
    without = [
        str(file)
        for split, files in layout.splits.items()
        for file, name in zip(files, classes[split], strict=True)
        if name is None
    ]
    if without:
        shown = listed([repr(file) for file in without[:5]])
        raise DataError(
            f"{len(without)} of {sum(map(len, classes.values()))} pictures lie in no class folder"
            f" ({shown}); allowed: SPLIT/CLASS/picture, CLASS/picture, or a table with their paths"
        )


def _labelled(files: Sequence[Path], found: Sequence[str], names: list[str]) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, Image

    places = {name: place for place, name in enumerate(names)}
    pictures = [{"path": os.path.abspath(file), "bytes": None} for file in files]
    return Dataset.from_dict(
        {"image": pictures, "label": [places[name] for name in found]},
        features=Features({"image": Image(), "label": ClassLabel(names=names)}),
    )


def _described(split: str, files: Sequence[Path]) -> Dataset:
    from datasets import Image

    tables = [file for file in files if is_metadata(file)]
    if len(tables) != 1:
        raise DataError(
            f"split {split!r} has {len(tables)} metadata files; allowed: one, which names all of"
            " its pictures"
        )
    kind = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}[tables[0].suffix.lower()]
    table = load_tables(kind, {split: tables})[split]
    if FILE_NAME not in table.column_names:
        raise DataError(
            f"{str(tables[0])!r} has the columns {listed(table.column_names)}; needed: {FILE_NAME}"
        )
    pictures = {os.path.abspath(file) for file in files if file != tables[0]}
    named = [_inside(tables[0], name) for name in table[FILE_NAME]]
    missing, left = sorted({*named} - pictures), sorted(pictures - {*named})
    faults = [
        f"{str(tables[0])!r} {words} {listed([repr(name) for name in found[:5]])}"
        f" ({len(found)} pictures); allowed: every picture of the split, and no other"
        for words, found in (("names what is not there:", missing), ("does not name", left))
        if found
    ]
    if faults:
        raise DataError(faults)
    table = table.add_column("image", named).remove_columns(FILE_NAME)
    return table.cast_column("image", Image())


def _inside(table: Path, name: object) -> str:
    """Where a picture lies that is named beside its table, which leads to no other place."""
    if (
        not isinstance(name, str)
        or "://" in name
        or os.path.isabs(name)
        or ".." in Path(name).parts
    ):
        raise ConfigError(
            f"{str(table)!r} names {name!r}; allowed: a picture in the same folder or below"
        )
    return os.path.abspath(table.parent / name)
