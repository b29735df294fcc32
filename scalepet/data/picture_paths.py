"""Paths of pictures in a table: as people write them, and as they hold from everywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalepet.data.rows import BadRows

if TYPE_CHECKING:
    from datasets import Dataset

_ALLOWED = "paths from the root, since the files of this split lie in several folders"


def with_whole_paths(table: Dataset, column: str, folders: Sequence[Path]) -> Dataset:
    """The table with the paths of one column made whole; as it is, where that holds no texts.

    Args:
        folders: of the files that the table was read from; paths are relative to it, if it is one.

    Raises:
        DataError: a relative path, and several folders; with all of their rows.
    """
    if getattr(table.features.get(column), "dtype", None) not in ("string", "large_string"):
        return table
    folder, bad, paths = folders[0], BadRows(), []
    for row, path in enumerate(table[column]):
        if path is not None:
            local = os.path.expanduser(path)
            if len(folders) > 1 and not os.path.isabs(local):
                bad.add(row, column=column, value=path, allowed=_ALLOWED)
            path = os.path.join(folder, local)
        paths.append(path)
    bad.refuse(num_rows=len(table))
    # Added before the old ones go, since a table without a column has no rows.
    whole = f"{column}, whole"
    return table.add_column(whole, paths).remove_columns(column).rename_column(whole, column)
