"""Local files of rows as tables that are memory-mapped: each is prepared once for what it holds."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scalepet.data.csv_rows import csv_header, read_csv, separator_of
from scalepet.data.json_rows import arrow_type, converted, kinds_of, read_json
from scalepet.data.known import cache_folder, content_name, unwritable
from scalepet.data.local_files import MAX_COLUMNS, unreadable
from scalepet.data.rows import listed
from scalepet.errors import DataError, Faults
from scalepet.reading import open_file

if TYPE_CHECKING:
    from datasets import DatasetDict

Files = Mapping[str, Sequence[Path]]
"""Split -> its files, in their order."""

READER = 1
"""Counts up where the same file gives other rows than before."""

NUM_ROWS = 1000
"""Of a batch that is written; a row may hold a picture."""


class Reader(Protocol):
    """All files of a source, whose columns are of one type in all of them."""

    def schema(self, files: Sequence[Path]) -> Any:
        """The columns of the rows of these files."""

    def batches(self, file: Path, schema: Any) -> Iterator[Any]:
        """The rows of one file as Arrow tables of that schema."""


def load_tables(kind: str, files: Files, *, sep: str | None = None) -> DatasetDict:
    """The rows of each split, memory-mapped.

    Args:
        kind: "csv", "json" or "parquet".
        sep: between the fields of csv; None: a tab in files called .tsv, else a comma.

    Raises:
        DataError: a file cannot be read, or two of them have other columns.
        ConfigError: the cache cannot be written.
    """
    from datasets import Dataset, DatasetDict

    folder = cache_folder() / _name(kind, files, sep)
    if not folder.is_dir():
        _prepare(folder, kind, files, sep)
    tables = {}
    for place, split in enumerate(files):
        file = folder / f"{place}.arrow"
        try:
            tables[split] = Dataset.from_file(str(file))
        except Exception as error:  # arrow's errors have no common base
            raise unreadable(str(file), error) from error
    return DatasetDict(tables)


def _name(kind: str, files: Files, sep: str | None) -> str:
    """Of these rows: the splits by their places, since their names change no row."""
    contents = [
        [content_name(paths), len(paths), [separator_of(path) for path in paths]]
        for paths in files.values()
    ]
    known = repr((READER, kind, sep, contents))
    return blake2b(known.encode(), digest_size=16).hexdigest()


def _prepare(folder: Path, kind: str, files: Files, sep: str | None) -> None:
    import pyarrow as pa

    every = list(dict.fromkeys(path for paths in files.values() for path in paths))
    reader: Reader = _Csv(every, sep) if kind == "csv" else READERS[kind](every)
    # On two machines, or in two containers, two processes may have one number.
    unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        for place, paths in enumerate(files.values()):
            schema = reader.schema(paths)
            with (unfinished / f"{place}.arrow").open("wb") as out:
                with pa.ipc.new_stream(out, schema) as stream:
                    for path in paths:
                        for batch in reader.batches(path, schema):
                            stream.write_table(batch)
                out.flush()
                os.fsync(out.fileno())
        unfinished.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise unwritable(folder.parent, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Csv:
    """Every column is text."""

    def __init__(self, files: Sequence[Path], sep: str | None) -> None:
        import pyarrow as pa

        self._sep = sep
        headers = {file: csv_header(file, sep or separator_of(file)) for file in files}
        first, *others = headers
        faults = [
            f"{str(file)!r} has the columns {listed(headers[file])}; "
            f"allowed: those of {str(first)!r}: {listed(headers[first])}"
            for file in others
            if headers[file] != headers[first]
        ]
        if faults:
            raise DataError(faults)
        self._schema = pa.schema([(name, pa.string()) for name in headers[first]])

    def schema(self, files: Sequence[Path]) -> Any:
        return self._schema

    def batches(self, file: Path, schema: Any) -> Iterator[Any]:
        rows = read_csv(file, self._sep or separator_of(file))
        for some in _batched(rows):
            yield _table(file, zip(*some, strict=True), schema)


class _Json:
    """The columns that any row of a split has; a row without one has None there."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._kinds: dict[str, Any] = {}
        self._names: dict[Path, list[str]] = {}
        faults = Faults()
        for file in files:
            with faults.noted():
                self._names[file] = kinds_of(read_json(file), self._kinds, file=file)
        if faults:
            raise DataError(faults)

    def schema(self, files: Sequence[Path]) -> Any:
        import pyarrow as pa

        names = dict.fromkeys(name for file in files for name in self._names[file])
        return pa.schema([(name, arrow_type(self._kinds[name])) for name in names])

    def batches(self, file: Path, schema: Any) -> Iterator[Any]:
        for some in _batched(read_json(file)):
            columns = (
                [converted(row.get(name), self._kinds[name]) for row in some]
                for name in schema.names
            )
            yield _table(file, columns, schema)


class _Parquet:
    """As it stands in the file, with what its metadata says of the columns."""

    def __init__(self, files: Sequence[Path]) -> None:
        import pyarrow as pa

        schemas = {file: self._open(file).schema_arrow for file in files}
        first, *others = schemas
        names = schemas[first].names
        faults = [
            f"{str(file)!r} has the columns {listed(schemas[file].names)}; allowed: those of"
            f" {str(first)!r}: {listed(names)}"
            for file in others
            if sorted(schemas[file].names) != sorted(names)
        ]
        if len(names) > MAX_COLUMNS:
            faults.append(f"{str(first)!r} has {len(names):,} columns; allowed: {MAX_COLUMNS:,}")
        if faults:
            raise DataError(faults)
        try:
            self._schema = pa.unify_schemas([*schemas.values()], promote_options="permissive")
        except pa.ArrowException as error:
            raise unreadable(listed([str(file) for file in files]), error) from error

    def schema(self, files: Sequence[Path]) -> Any:
        return self._schema

    def batches(self, file: Path, schema: Any) -> Iterator[Any]:
        import pyarrow as pa

        try:
            for batch in self._open(file).iter_batches(batch_size=NUM_ROWS):
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        except Exception as error:  # arrow's errors have no common base
            raise unreadable(str(file), error) from error

    def _open(self, file: Path) -> Any:
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(open_file(file))
        except Exception as error:  # arrow's errors have no common base
            raise unreadable(str(file), error) from error


READERS: dict[str, Any] = {"json": _Json, "parquet": _Parquet}


def _batched(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while some := list(islice(rows, NUM_ROWS)):
        yield some


def _table(file: Path, columns: Iterable[Any], schema: Any) -> Any:
    import pyarrow as pa

    try:
        arrays = [
            pa.array(list(values), field.type)
            for values, field in zip(columns, schema, strict=True)
        ]
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise unreadable(str(file), error) from error
    return pa.Table.from_arrays(arrays, schema=schema)
