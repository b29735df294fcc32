"""Folders that ``save_to_disk`` of datasets has made, read without following what they name to
other places.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalepet.data.local_files import unreadable
from scalepet.errors import DataError
from scalepet.reading import check_file, parse_json, read_bytes

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"


def is_saved(folder: Path) -> bool:
    """Whether the folder was made by ``save_to_disk``."""
    return (folder / SPLITS_FILE).is_file() or (folder / STATE_FILE).is_file()


def load_saved(folder: Path) -> DatasetDict:
    """Every split, memory-mapped.

    Raises:
        DataError: a file is gone or broken, or one is named that does not lie in the folder.
    """
    from datasets import DatasetDict

    if not (folder / SPLITS_FILE).is_file():
        table, split = _load(folder)
        return DatasetDict({split or "train": table})
    content = _read(folder / SPLITS_FILE)
    names = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(names, list):
        raise unreadable(str(folder / SPLITS_FILE), ValueError("it has no list of splits"))
    return DatasetDict(
        {name: _load(folder / _beside(folder / SPLITS_FILE, name))[0] for name in names}
    )


def _load(folder: Path) -> tuple[Dataset, str | None]:
    from datasets import Dataset, concatenate_datasets

    place = folder / STATE_FILE
    state = _read(place)
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        raise unreadable(str(place), ValueError("it has no list of _data_files"))
    if state.get("_indices_data_files"):
        raise unreadable(str(place), ValueError("it has rows in another order; save them anew"))
    parts = []
    for entry in state["_data_files"]:
        name = entry.get("filename") if isinstance(entry, dict) else entry
        file = folder / _beside(place, name)
        try:
            check_file(file)
            parts.append(Dataset.from_file(str(file)))
        except Exception as error:  # arrow's errors have no common base
            raise unreadable(str(file), error) from error
    split = state.get("_split")
    table = concatenate_datasets(parts) if parts else Dataset.from_dict({})
    return table, split if isinstance(split, str) else None


def _read(file: Path) -> Any:
    try:
        return parse_json(read_bytes(file))
    except (OSError, ValueError) as error:
        raise unreadable(str(file), error) from error


def _beside(file: Path, name: object) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise DataError(f"{str(file)!r} names {name!r}, which does not lie beside it")
    return name
