"""Rows from the hub, from files and from folders.

Local files are read by scalepet itself, so that a name is a name, a text is a text and nothing of a
folder is passed over; datasets fetches what is on the hub, and holds all tables. It is imported
inside the functions, because it takes a second. Remote code never runs: datasets has no loading
scripts any more, and nothing here turns on more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scalepet.data.draws import at
from scalepet.data.folder_configs import described_layout
from scalepet.data.folders import PICTURES, layout_of
from scalepet.data.local_files import files_at, reason, unreadable
from scalepet.data.picture_folders import load_pictures
from scalepet.data.picture_paths import with_whole_paths
from scalepet.data.rows import Rows, check_columns, listed
from scalepet.data.saved import is_saved, load_saved
from scalepet.data.splits import Part, choose, parts_of, shared_row_faults, sizes_in_words
from scalepet.data.tables import load_tables
from scalepet.data.task import FILE_FORMATS, Source, Task
from scalepet.errors import ConfigError, DataError, Faults
from scalepet.paths import expanded

if TYPE_CHECKING:
    from datasets import DatasetBuilder, DatasetDict


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

    Columns of csv files are text, as it stands in the file; an empty field is None. Those of JSON
    files are as ``data.json_rows`` says.

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
        if not files_at(name)
    ]
    folder = Path(expanded(source.path))
    looks_local = source.path.startswith((".", "/", "~", "$")) or source.path.count("/") > 1
    if source.path not in FILE_FORMATS and folder.is_file():
        faults.append(
            f"task.source.path {source.path!r} is a file; allowed: a local folder, or path"
            f" {', '.join(FILE_FORMATS)} with task.source.files"
        )
    elif looks_local and not folder.is_dir():
        faults.append(f"task.source.path {source.path!r} does not exist; allowed: a local folder")
    return faults


def _load_tables(source: Source) -> DatasetDict:
    """All splits, memory-mapped."""
    if source.path in FILE_FORMATS:
        return load_tables(source.path, _file_lists(source))
    folder = Path(expanded(source.path))
    if not folder.is_dir():
        return _build(source.path, name=source.subset)
    if is_saved(folder):
        if source.subset is not None:
            raise ConfigError(
                f"task.source.subset is {source.subset!r}, but {source.path!r} was made by "
                "save_to_disk; allowed: no subset"
            )
        return load_saved(folder)
    return _load_folder(source, folder)


def _load_folder(source: Source, folder: Path) -> DatasetDict:
    scripts = [path.name for path in sorted(folder.glob("*.py"))]
    if scripts:
        raise ConfigError(
            f"task.source.path {source.path!r} brings code of its own ({listed(scripts)}), which is"
            " never run; allowed: a folder with nothing but data"
        )
    described = described_layout(folder, source.subset)
    if described is None and source.subset is not None:
        raise ConfigError(
            f"task.source.path {source.path!r} with subset {source.subset!r} cannot be opened: its"
            " README.md describes no configurations; allowed: no subset"
        )
    layout, sep = described or (layout_of(folder), None)
    if layout.kind == PICTURES:
        return load_pictures(layout)
    kind = "csv" if layout.kind == "tsv" else layout.kind
    return load_tables(kind, layout.splits, sep=sep)


def _file_lists(source: Source) -> dict[str, list[Path]]:
    return {
        split: [
            file
            for name in ([names] if isinstance(names, str) else names)
            for file in files_at(name)
        ]
        for split, names in (source.files or {}).items()
    }


def _true_files(source: Source) -> dict[str, list[str]]:
    """The files of a file format, links followed."""
    return {
        split: [os.path.realpath(file) for file in files]
        for split, files in _file_lists(source).items()
    }


def _builder(path: str, **options: Any) -> DatasetBuilder:
    from datasets import load_dataset_builder

    try:
        return load_dataset_builder(path, **options)
    except Exception as error:
        subset = options.get("name")
        raise ConfigError(
            f"task.source.path {path!r}{f' with subset {subset!r}' if subset else ''} cannot be "
            f"opened: {reason(error)}; allowed: {', '.join(FILE_FORMATS)} with files, a local "
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
        raise unreadable(path, error) from error


def _select(tables: DatasetDict, parts: Sequence[Part]) -> Rows:
    from datasets import concatenate_datasets

    selected = [tables[part.name].select(range(part.start, part.stop)) for part in parts]
    # A saved data set remembers an output format; rows are plain Python values here.
    return cast(Rows, concatenate_datasets(selected).with_format(None))


def _with_whole_paths(source: Source, tables: DatasetDict, column: str) -> DatasetDict:
    from datasets import DatasetDict

    files = _file_lists(source) if source.path in FILE_FORMATS else {}
    own = Path(expanded(source.path))
    folders = {
        name: sorted({file.parent for file in files.get(name, [])}) or [own] for name in tables
    }
    return DatasetDict(
        {name: with_whole_paths(table, column, folders[name]) for name, table in tables.items()}
    )


def _sizes(tables: DatasetDict) -> dict[str, int]:
    return {str(name): len(table) for name, table in tables.items()}
