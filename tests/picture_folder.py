"""Small pictures on disk, in folders that are called as what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

CLASSES = ("dark", "light")


def write_pictures(
    folder: Path, counts: dict[str, int], *, side: int = 20, classes: Sequence[str] = CLASSES
) -> list[Path]:
    """``train/dark/000.png`` and so on, of many sizes and modes, classes in turn, each lighter than
    the one before; their paths.
    """
    generator, paths = np.random.default_rng(5), []
    for split, num_pictures in counts.items():
        for index in range(num_pictures):
            place = index % len(classes)
            name, mode = classes[place], ("RGB", "L", "P", "RGBA")[index % 4 if index > 7 else 0]
            width, height = generator.integers(side, 2 * side, 2)
            levels = generator.integers(0, 160, (height, width, 3)) + 90 * place // (
                len(classes) - 1
            )
            path = folder / split / name / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(levels.astype(np.uint8)).convert(mode).save(path)
            paths.append(path)
    return paths
