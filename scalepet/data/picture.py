"""How a picture becomes numbers: the part of a task that pictures need."""

from __future__ import annotations

import math
from dataclasses import dataclass

NUM_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class Picture:
    """How a picture becomes numbers: red, green and blue from 0 to 1 if nothing else is asked for.

    Args:
        size: pixels of each side that the backbone reads.
        resize: pixels of the short side before evaluation cuts out the middle.
        augment: train on random parts, half of them mirrored; false: on what evaluation sees.
        mean: what is taken off red, green and blue, which go from 0 to 1.
        std: what they are divided by then.
    """

    size: int = 224
    resize: int = 256
    augment: bool = True
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        faults = []
        if self.size < 1:
            faults.append(f"task.picture.size is {self.size}; allowed: at least 1")
        elif self.resize < self.size:
            faults.append(
                f"task.picture.resize is {self.resize}; allowed: at least {self.size}, "
                "which is task.picture.size"
            )
        if not _are_three(self.mean):
            faults.append(f"task.picture.mean is {[*self.mean]}; allowed: three numbers")
        if not _are_three(self.std) or min(self.std) <= 0:
            faults.append(f"task.picture.std is {[*self.std]}; allowed: three numbers above 0")
        return faults


def _are_three(values: tuple[float, ...]) -> bool:
    return len(values) == NUM_CHANNELS and all(map(math.isfinite, values))
