"""Labelled pictures inside packages, as train.parquet and test.parquet: one row a picture.

`datasets` reads such a folder with the columns image (PNG bytes, decoded when asked for) and label
(a class label with its names, in alphabetical order). Rows stand in an order drawn from the name of
each picture (splits.py). Each converter returns what was done, for the asset's SOURCE.md.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from scalepet.assets.splits import draw, split, split_note
from scalepet.errors import DataError

MNIST_FILE = "mnist_5k.csv.gz"
MNIST_SIDE = 28


@dataclass(frozen=True, eq=False)
class Picture:
    """One row of a file.

    Attributes:
        name: its own among all pictures of an asset.
        known: further columns, the same ones in all pictures of an asset.
    """

    name: str
    label: str
    image: Image.Image
    known: Mapping[str, str] = field(default_factory=dict)


def mnist(raw: Path, folder: Path) -> str:
    """Handwritten digits of 28 x 28 grey pixels, white on black: columns image, label.

    Raises:
        DataError: a table that has not 784 pixels and a digit in each row.
    """
    with gzip.open(raw / MNIST_FILE, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8, ndmin=2)
    if table.shape[1] != MNIST_SIDE**2 + 1:
        raise DataError(
            f"{MNIST_FILE}: has {table.shape[1]} columns; allowed: {MNIST_SIDE**2} pixels, a digit"
        )
    digits = [
        Picture(f"{index:04}", str(digit), Image.fromarray(pixels.reshape(MNIST_SIDE, -1)))
        for index, (*_, digit), pixels in zip(
            range(len(table)), table, np.ascontiguousarray(table[:, :-1]), strict=True
        )
    ]
    parts = split(digits, key=lambda digit: digit.name, stratum=lambda digit: digit.label)
    return f"{split_note('digit')} {write_pictures(folder, parts)}"


def write_pictures(folder: Path, parts: Mapping[str, Sequence[Picture]]) -> str:
    """Write one file for each part; returns how many rows it has.

    Raises:
        DataError: a class that one part has and another has not.
    """
    labels = {part: {picture.label for picture in pictures} for part, pictures in parts.items()}
    names = sorted(set().union(*labels.values()))
    faults = [
        f"{part}: has no picture of {name!r}"
        for part, present in labels.items()
        for name in names
        if name not in present
    ]
    if faults:
        raise DataError(faults)
    notes = []
    for part, pictures in parts.items():
        in_order = sorted(pictures, key=lambda picture: draw(picture.name))
        pq.write_table(_table(in_order, names), folder / f"{part}.parquet")
        notes.append(f"{len(pictures)} rows in {part}.parquet")
    return f"{len(names)} classes; {' and '.join(notes)}, in a fixed random order."


def _table(pictures: Sequence[Picture], names: Sequence[str]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        "image": [{"bytes": _png(p.image), "path": f"{p.name}.png"} for p in pictures],
        "label": [names.index(picture.label) for picture in pictures],
    }
    for column in pictures[0].known:
        columns[column] = [picture.known[column] for picture in pictures]
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": names},
    } | {column: {"_type": "Value", "dtype": "string"} for column in pictures[0].known}
    # What datasets would write: without it, the columns would be a struct and a number.
    told = json.dumps({"info": {"features": features}})
    return pa.table(columns).replace_schema_metadata({"huggingface": told})


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
