"""Rows from the hub, from files and from folders; the only importer of datasets.

Remote code never runs: datasets has no loading scripts any more, and nothing here turns on more.
datasets and pandas are imported inside the functions, because they take a second.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scalepet.data.draws import at
from scalepet.data.picture_paths import with_whole_paths
from scalepet.data.rows import Rows, check_columns, listed
from scalepet.data.splits import Part, choose, parts_of, shared_row_faults, sizes_in_words
from scalepet.data.task import FILE_FORMATS, Source, Task
from scalepet.errors import ConfigError, DataError, Faults

if TYPE_CHECKING:
    from datasets import DatasetBuilder, DatasetDict

Files = Mapping[str, list[str]]


@dataclass(frozen=True)
class Splits:
    """All splits of a source.

    Attributes:
        rows: of each, by our names.
        num_blank: blank rows that were left out of each; what is held out counts them as "train".
    """

    rows: dict[str, Rows]
    num_blank: dict[str, int]


def load_split(
    source: Source, split: str, *, pictures: str | None = None, columns: Sequence[str] = ()
) -> Rows:
    """The rows of our split "train", "eval" or "test".

    Columns of csv files are text, as it stands in the file; an empty field is None.

    Args:
        pictures: the column of pictures. Where it holds paths, they are relative to the folder of
            the file that names them, or to the source's own folder.
        columns: those in which a row is blank that ``source.skip_blank`` leaves out.

    Raises:
        ConfigError: faults of the source, files or folders that do not exist, a hub id that
            cannot be found or reached, a split expression that names no split or rows beyond it,
            more rows held out than there are.
        DataError: what is there cannot be read, the split has no rows, or a path of a picture has
            no one folder to start from.
    """
    rows, _ = _load_one(source, split, _open(source, pictures), columns)
    return rows


def load_splits(task: Task, names: Sequence[str] | None = None) -> Splits:
    """The rows of all splits of a task, of which no two have a row in common.

    Args:
        names: of the splits; None for all that the source has.

    Raises:
        ConfigError: every fault of all splits together: those of ``load_split``, columns that are
            missing, and rows or files that stand in two of them.
        DataError: as ``load_split``, of what all splits need.
    """
    source, columns = task.source, task.columns
    tables = _open(source, task.picture_column)
    splits, parts, faults = Splits({}, {}), dict[str, list[Part]](), Faults()
    for split in source.names if names is None else names:
        with faults.noted():
            parts[split] = _parts(source, split, tables)
            rows, num_blank = _load_one(source, split, tables, columns)
            check_columns(rows, columns)
            splits.rows[split] = rows
            if _origin(source, split) == split:
                splits.num_blank[split] = num_blank
    own = {split: found for split, found in parts.items() if _origin(source, split) == split}
    faults += shared_row_faults(source, own, _true_files(source))
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))  # several splits may have one in common
    return splits


def _open(source: Source, pictures: str | None) -> DatasetDict:
    import datasets

    faults = source.faults() or missing_files(source)
    if faults:
        raise ConfigError(faults)
    datasets.disable_progress_bars()  # else every rank draws one for each file
    tables = _load_tables(source)
    return tables if pictures is None else _with_whole_paths(source, tables, pictures)


def _load_one(
    source: Source, split: str, tables: DatasetDict, columns: Sequence[str]
) -> tuple[Rows, int]:
    """The rows of a split, and how many blank ones it has beside them."""
    rows = _select(tables, _parts(source, split, tables))
    if len(rows) == 0:
        raise DataError(
            f"task.source.splits.{_origin(source, split)} {source.expression(split)!r} of"
            f" {source.path!r} has no rows; splits: {sizes_in_words(_sizes(tables))}"
        )
    numbers, num_blank = choose(source, split, rows, columns)
    return (rows if len(numbers) == len(rows) else at(rows, numbers)), num_blank


def _parts(source: Source, split: str, tables: DatasetDict) -> list[Part]:
    field = f"task.source.splits.{_origin(source, split)}"
    return parts_of(source.expression(split), _sizes(tables), field=field)


def _origin(source: Source, split: str) -> str:
    """Our split whose expression names the rows."""
    return "train" if split == "eval" and source.held_out is not None else split


def rows_of(columns: Mapping[str, list[str]]) -> Rows:
    """Rows from plain columns of one length."""
    import datasets

    return cast(Rows, datasets.Dataset.from_dict(dict(columns)))


def missing_files(source: Source) -> list[str]:
    """A fault for each file, pattern or folder of the source that does not exist."""
    faults = [
        f"task.source.files.{split} {name!r} does not exist; allowed: local {source.path} files"
        for split, names in (source.files or {}).items()
        for name in ([names] if isinstance(names, str) else names)
        if not _matches(name)
    ]
    looks_local = source.path.startswith((".", "/", "~")) or source.path.count("/") > 1
    if looks_local and not Path(source.path).expanduser().is_dir():
        faults.append(f"task.source.path {source.path!r} does not exist; allowed: a local folder")
    return faults


def _matches(name: str) -> list[str]:
    return sorted(glob.glob(str(Path(name).expanduser()), recursive=True))


def _load_tables(source: Source) -> DatasetDict:
    """All splits, memory-mapped."""
    if source.path in FILE_FORMATS:
        return _load_files(source.path, _file_lists(source), sep=",")
    folder = Path(source.path).expanduser()
    if not folder.is_dir():
        return _build(source.path, name=source.subset)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _load_saved(source)
    config = _builder(str(folder), name=source.subset).config
    sep = getattr(config, "sep", None)
    if sep is None:
        return _build(str(folder), name=source.subset)
    files = {
        str(split): [str(file) for file in names] for split, names in config.data_files.items()
    }
    return _load_files("csv", files, sep=sep)


def _file_lists(source: Source) -> Files:
    return {
        split: [
            file
            for name in ([names] if isinstance(names, str) else names)
            for file in _matches(name)
        ]
        for split, names in (source.files or {}).items()
    }


def _true_files(source: Source) -> Files:
    """The files of a file format, links followed."""
    return {
        split: [os.path.realpath(file) for file in files]
        for split, files in _file_lists(source).items()
    }


def _load_files(file_format: str, files: Files, *, sep: str) -> DatasetDict:
    options = _csv_options(files, sep=sep) if file_format == "csv" else {}
    return _build(file_format, data_files=dict(files), **options)


def _csv_options(files: Files, *, sep: str) -> dict[str, Any]:
    """Every column as text, and only an empty field as None.

    The guesses of pandas would read 007 as 7.0 and the words "NA", "null" and "None" as nothing.
    """
    from datasets import Features, Value

    headers = {file: _csv_header(file, sep=sep) for names in files.values() for file in names}
    first, *others = headers
    faults = [
        f"{file!r} has the columns {listed(headers[file])}; "
        f"allowed: those of {first!r}: {listed(headers[first])}"
        for file in others
        if headers[file] != headers[first]
    ]
    if faults:
        raise DataError(faults)
    features = Features({column: Value("string") for column in headers[first]})
    return {"features": features, "keep_default_na": False, "na_values": [""], "sep": sep}


def _csv_header(file: str, *, sep: str) -> list[str]:
    import pandas

    try:
        top = pandas.read_csv(file, nrows=1, dtype=str, keep_default_na=False, sep=sep)
    except Exception as error:
        raise _unreadable(file, error) from error
    if not isinstance(top.index, pandas.RangeIndex):
        # pandas takes surplus fields for row names, which moves every value one column on.
        raise DataError(
            f"{file!r}: the first row has more fields than the header {listed(list(top.columns))}; "
            "allowed: one field for each column"
        )
    return list(top.columns)


def _load_saved(source: Source) -> DatasetDict:
    from datasets import Dataset, DatasetDict, load_from_disk

    if source.subset is not None:
        raise ConfigError(
            f"task.source.subset is {source.subset!r}, but {source.path!r} was made by "
            "save_to_disk; allowed: no subset"
        )
    try:
        saved = load_from_disk(str(Path(source.path).expanduser()))
    except Exception as error:
        raise _unreadable(source.path, error) from error
    if isinstance(saved, Dataset):
        return DatasetDict({str(saved.split or "train"): saved})
    return saved


def _builder(path: str, **options: Any) -> DatasetBuilder:
    from datasets import load_dataset_builder

    try:
        return load_dataset_builder(path, **options)
    except Exception as error:
        subset = options.get("name")
        raise ConfigError(
            f"task.source.path {path!r}{f' with subset {subset!r}' if subset else ''} cannot be "
            f"opened: {_reason(error)}; allowed: {', '.join(FILE_FORMATS)} with files, a local "
            "folder with data files, or a hub id"
        ) from error


def _build(path: str, **options: Any) -> DatasetDict:
    from datasets import Dataset, DatasetDict

    builder = _builder(path, **options)
    try:
        builder.download_and_prepare()
        # A split without rows cannot be opened; it stands here empty, to be named if asked for.
        return DatasetDict(
            {
                name: builder.as_dataset(split=name) if info.num_examples else Dataset.from_dict({})
                for name, info in builder.info.splits.items()
            }
        )
    except Exception as error:
        files = [str(file) for names in options.get("data_files", {}).values() for file in names]
        raise _unreadable(listed(files) or path, error) from error


def _unreadable(what: str, error: Exception) -> DataError:
    return DataError(f"{what!r} cannot be read: {_reason(error)}; allowed: a whole, valid file")


def _reason(error: Exception) -> str:
    """The innermost error in one line; datasets wraps what pandas, arrow and json say."""
    inner: BaseException = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    return f"{type(inner).__name__}: {' '.join(str(inner).split())}"


def _select(tables: DatasetDict, parts: Sequence[Part]) -> Rows:
    from datasets import concatenate_datasets

    selected = [tables[part.name].select(range(part.start, part.stop)) for part in parts]
    # A saved data set remembers an output format; rows are plain Python values here.
    return cast(Rows, concatenate_datasets(selected).with_format(None))


def _with_whole_paths(source: Source, tables: DatasetDict, column: str) -> DatasetDict:
    from datasets import DatasetDict

    files = _file_lists(source) if source.path in FILE_FORMATS else {}
    own = Path(source.path).expanduser()
    folders = {
        name: sorted({Path(file).parent for file in files.get(name, [])}) or [own]
        for name in tables
    }
    return DatasetDict(
        {name: with_whole_paths(table, column, folders[name]) for name, table in tables.items()}
    )


def _sizes(tables: DatasetDict) -> dict[str, int]:
    return {str(name): len(table) for name, table in tables.items()}
