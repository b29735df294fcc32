"""One split as pictures: where they lie and what they show; decoded when a batch is made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import cache, cached_property
from hashlib import blake2b
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from scalepet.data.batch import FILLER, Batch, Epoch
from scalepet.data.forms import IGNORED, Form, Ids, RowNumbers
from scalepet.data.known import content_name, remembered
from scalepet.data.labels import read_classes
from scalepet.data.metrics import Reference
from scalepet.data.picture import NUM_CHANNELS, Picture
from scalepet.data.rows import BadRows, Rows
from scalepet.data.task import Task
from scalepet.data.views import draw, view
from scalepet.errors import DataError
from scalepet.reading import open_file

MAX_NUM_THREADS = 8
"""That decode the pictures of one batch; ranks of one machine share its cores."""

_PICTURES = "pictures, their bytes, or paths of picture files"


@dataclass(frozen=True, eq=False)
class Pictures:
    """One split as pictures, row by row in the order of the split.

    Args:
        picture: how they become numbers.
        column: what they are called in messages.
        files: a table of datasets with that column: "bytes" or "path" of each, not decoded.
        classes: class of each row, int32; None without labels.
        references: label word of each row; empty without labels.
    """

    form: ClassVar[Form] = "head"
    label_ids: ClassVar[list[Ids] | None] = None
    num_cut_sources: ClassVar[int] = 0
    num_cut_targets: ClassVar[int] = 0
    unknown: ClassVar[Mapping[str, tuple[int, int]]] = {}
    is_read_late: ClassVar[bool] = True

    picture: Picture
    column: str
    files: Any
    classes: Ids | None = None
    references: Sequence[Reference] = ()

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.files)

    @property
    def lengths(self) -> RowNumbers:
        """1 for each row: what a backbone reads of them is of one size."""
        return np.ones(self.num_rows, dtype=np.int64)

    @property
    def num_targets(self) -> RowNumbers:
        """1 for each row; 0 without labels."""
        return np.full(self.num_rows, self.classes is not None, dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of BLAKE2b over how pictures become numbers and, in row order, their
        classes, the last two parts of their paths and what their files or their bytes hold; files
        that stay as they are are read for it once.

        Raises:
            DataError: a file cannot be read.
        """
        paths, sizes = _outlines(self.files, self.column)
        classes = [] if self.classes is None else self.classes.tolist()
        names = ["/".join((path or "").split(os.sep)[-2:]) for path in paths]
        own = [path for path, size in zip(paths, sizes, strict=True) if size is None]
        contents = (content_name([path for path in own if path]), self._name_of_bytes(sizes))
        known = (astuple(self.picture), classes, names, sizes, contents)
        return blake2b(repr(known).encode(), digest_size=16).hexdigest()

    def _name_of_bytes(self, sizes: Sequence[int | None]) -> str | None:
        """Of the pictures that lie in the table itself, read once for each state of its files."""
        if not any(sizes):
            return None
        rows = blake2b(repr(_row_numbers(self.files)).encode(), digest_size=16).digest()
        tables = [file["filename"] for file in self.files.cache_files]
        if not tables:
            return blake2b(b"".join(self._digests()), digest_size=16).hexdigest()
        return remembered(tables, self._digests, besides=rows + self.column.encode())

    def _digests(self) -> Iterator[bytes]:
        for file in self.files:
            content = file[self.column]["bytes"] or b""
            yield blake2b(content, digest_size=16).digest()

    def batch(
        self,
        rows: RowNumbers,
        *,
        epoch: Epoch | None = None,
        pad_id: int | None = None,
        pad_to_multiple_of: int = 1,
    ) -> Batch:
        """The batch of these rows; of one black filler where there are none.

        Args:
            epoch: what random parts depend on, beside the row; None for what evaluation sees.
            pad_id, pad_to_multiple_of: of token rows; pictures are of one size.

        Raises:
            DataError: pictures that cannot be decoded, all of this batch, with their rows.
        """
        import torch  # here, so that what a task is can be read without it

        num_pictures = len(rows)
        labels = np.full(max(num_pictures, 1), IGNORED, dtype=np.int64)
        if num_pictures == 0:
            size = self.picture.size
            pixels = np.zeros((1, NUM_CHANNELS, size, size), dtype=np.float32)
            rows = np.array([FILLER], dtype=np.int64)
        else:
            pixels = np.stack(self._views(rows, epoch if self.picture.augment else None))
            if self.classes is not None:
                labels[:] = self.classes[rows]
        tensors = {"pixel_values": torch.from_numpy(pixels), "labels": torch.from_numpy(labels)}
        return Batch(
            tensors=tensors,
            num_targets=int(np.count_nonzero(labels != IGNORED)),
            num_tokens=0,
            rows=rows,
            num_pictures=num_pictures,
        )

    def _views(self, rows: RowNumbers, epoch: Epoch | None) -> list[npt.NDArray[Any]]:
        numbers = rows.tolist()
        files = self.files[numbers][self.column]
        draws = [None if epoch is None else draw(epoch, row) for row in numbers]
        faults: list[str] = []

        def see(row: int, file: Mapping[str, Any], drawn: list[float] | None) -> Any:
            try:
                return view(_decode(file), self.picture, drawn)
            except Exception as error:  # pillow and its decoders raise many kinds
                faults.append(_fault(self.column, row, file, error))
                return None

        with ThreadPoolExecutor(min(len(numbers), _num_threads())) as threads:
            views = list(threads.map(see, numbers, files, draws))
        if faults:
            raise DataError(sorted(faults))
        return views


def encode_pictures(task: Task, rows: Rows, *, labelled: bool) -> Pictures:
    """The rows of one split of a task of pictures; no picture is decoded yet.

    Raises:
        DataError: a column that holds something else; rows without a picture, files that are not
            there and labels that are not allowed, with their rows.
    """
    column = task.picture_column
    assert column is not None, task.kind
    files = _as_files(rows, column)
    bad = BadRows()
    _check_files(files, column, bad)
    classes = read_classes(task, rows, bad) if labelled else []
    bad.refuse(num_rows=len(rows))
    return Pictures(
        picture=task.picture,
        column=column,
        files=files,
        classes=np.array(classes, dtype=np.int32) if labelled else None,
        references=[task.labels[index] for index in classes],
    )


def _as_files(rows: Rows, column: str) -> Any:
    """The column alone, each picture as its bytes or its path."""
    from datasets import Image, Value

    feature = rows.features[column]
    is_file = isinstance(feature, Mapping) and feature.keys() <= {"bytes", "path"}
    is_value = isinstance(feature, Value) and feature.dtype.removeprefix("large_") in (
        "string",
        "binary",
    )
    if not (isinstance(feature, Image) or is_file or is_value):
        raise DataError(f"column {column!r} holds {feature}; allowed: {_PICTURES}")
    table: Any = rows.select_columns([column])
    return table.cast_column(column, Image(decode=False))


def _check_files(files: Any, column: str, bad: BadRows) -> None:
    @cache  # one look at a folder is cheaper than one at each file, above all over a network
    def names_in(folder: str) -> frozenset[str]:
        return frozenset(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else frozenset()

    paths, sizes = _outlines(files, column)
    for row, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        if path is None and size is None:
            bad.add(row, column=column, value=None, allowed=_PICTURES)
        elif size is None and path is not None:
            folder, name = os.path.split(path)
            if name not in names_in(folder):
                bad.add(row, column=column, value=path, allowed="files that exist")


def _outlines(files: Any, column: str) -> tuple[list[str | None], list[int | None]]:
    """Path and number of bytes of each picture, None where the table holds none. Pictures stay
    unread: of their bytes only the ends are looked at, which Arrow keeps in a column of their own.
    """
    import pyarrow.compute as pc

    stored = files.data.column(column)
    parts = (
        pc.struct_field(stored, "path"),
        pc.binary_length(pc.struct_field(stored, "bytes")),
    )
    chosen = files._indices  # rows of a selection; to take them from the table would read them
    if chosen is not None:
        parts = tuple(part.take(chosen.column(0)) for part in parts)
    paths, sizes = (part.to_pylist() for part in parts)
    return paths, sizes


def _row_numbers(files: Any) -> list[int] | int:
    """Those of a selection; of a whole table how many it has."""
    chosen = files._indices
    return len(files) if chosen is None else chosen.column(0).to_pylist()


def _decode(file: Mapping[str, Any]) -> Any:
    """The picture as it is to be looked at: turned as its EXIF says, the first of several. A path
    is the name of a file, whatever it looks like.
    """
    import PIL.Image
    import PIL.ImageOps

    content = file["bytes"]
    with open_file(file["path"]) if content is None else BytesIO(content) as opened:
        image: PIL.Image.Image = PIL.Image.open(opened)
        image.load()
    if image.getexif().get(PIL.Image.ExifTags.Base.Orientation) is not None:
        image = PIL.ImageOps.exif_transpose(image)
    return image


def _fault(column: str, row: int, file: Mapping[str, Any], error: Exception) -> str:
    where = f" ({file['path']!r})" if file["path"] else ""
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"column {column!r}: row {row}{where} cannot be decoded: {reason}; "
        "allowed: a whole picture of 8 bits a channel"
    )


def _num_threads() -> int:
    return min(MAX_NUM_THREADS, os.cpu_count() or 1)
