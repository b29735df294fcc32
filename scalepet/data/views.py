"""What is seen of a picture: the crops that ViTs are trained and scored with, as torchvision
publishes them, with pillow and numpy alone.

Both resize with pillow's antialiased bilinear filter, torchvision's default and the one of LAE.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scalepet.data.picture import Picture

if TYPE_CHECKING:
    import PIL.Image

    from scalepet.data.batch import Epoch

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
NUM_TRIES = 10
MAX_RATIO = 16
"""Of the sides of a picture that is resized as a whole before its middle is cut out."""

NUM_DRAWS = 2 * NUM_TRIES + 3
"""Area and ratio of each try, the place in both directions, the mirror."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, as pillow has them."""


def view(image: PIL.Image.Image, picture: Picture, draws: list[float] | None) -> npt.NDArray[Any]:
    """The numbers of a picture, float32 (3, size, size).

    Args:
        image: in any mode with 8 bits a channel.
        draws: from ``draw``; None for what evaluation sees.

    Raises:
        ValueError: the mode has more bits, of which pillow would keep the wrong ones.
    """
    image = to_rgb(image)
    seen = middle(image, picture) if draws is None else random_part(image, picture, draws)
    pixels = np.asarray(seen, dtype=np.float32) / np.float32(255)
    mean, std = (np.array(values, dtype=np.float32) for values in (picture.mean, picture.std))
    pixels = (pixels - mean) / std
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Red, green and blue of any picture: greys three times, palettes looked up, alpha dropped, as
    torchvision's folder loader does it.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its mode is {image.mode!r}, which has more than 8 bits a channel")
    if "transparency" in image.info:  # of palettes pillow wants alpha made visible first
        image = image.convert("RGBA")
    return image.convert("RGB")


def middle(image: PIL.Image.Image, picture: Picture) -> PIL.Image.Image:
    """``Resize(resize)`` and ``CenterCrop(size)`` of torchvision: what evaluation sees."""
    short = min(image.size)
    # int and round as they stand in torchvision, where one pixel more or less moves the middle.
    width, height = (int(picture.resize * side / short) for side in image.size)
    left, top = (round((side - picture.size) / 2) for side in (width, height))
    box = (left, top, left + picture.size, top + picture.size)
    if max(width, height) <= MAX_RATIO * min(width, height):
        return _resized(image, width, height).crop(box)
    # Of a picture like a thread, only the part that is seen is made large.
    across, down = (side / new for side, new in zip(image.size, (width, height), strict=True))
    right, lower = (min(box[2] * across, image.width), min(box[3] * down, image.height))
    seen = (box[0] * across, box[1] * down, right, lower)
    return _resized(image, picture.size, picture.size, box=seen)


def random_part(image: PIL.Image.Image, picture: Picture, draws: list[float]) -> PIL.Image.Image:
    """``RandomResizedCrop(size)`` and ``RandomHorizontalFlip()`` of torchvision."""
    import PIL.Image

    part = image.crop(random_box(*image.size, draws))
    seen = _resized(part, picture.size, picture.size)
    return seen.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if draws[-1] < 0.5 else seen


def random_box(width: int, height: int, draws: list[float]) -> Box:
    """A part with an area uniform in ``SCALE`` of the whole and a ratio of its sides log-uniform in
    ``RATIO``; the largest allowed part in the middle where ``NUM_TRIES`` draws do not fit.

    Source: Szegedy et al. 2015 (Going deeper with convolutions), as torchvision has it.
    """
    for area_draw, ratio_draw in zip(draws[0:-3:2], draws[1:-3:2], strict=True):
        area = width * height * _between(*SCALE, area_draw)
        ratio = math.exp(_between(math.log(RATIO[0]), math.log(RATIO[1]), ratio_draw))
        part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part_width <= width and 0 < part_height <= height:
            left = int(draws[-3] * (width - part_width + 1))
            top = int(draws[-2] * (height - part_height + 1))
            return left, top, left + part_width, top + part_height
    part_width = min(width, round(height * RATIO[1]))
    part_height = min(height, round(width / RATIO[0]))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return left, top, left + part_width, top + part_height


def draw(epoch: Epoch, row: int) -> list[float]:
    """``NUM_DRAWS`` numbers in [0, 1), of this row in this epoch and of nothing else.

    Philox 4x64-10 (Salmon et al. 2011) with key (seed, epoch), as for the order of the rows; the
    counter starts at (0, row + 1, 0, 0), where no order comes.
    """
    key = np.array([epoch.seed, epoch.number], dtype=np.uint64)
    counter = np.array([0, row + 1, 0, 0], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(NUM_DRAWS)
    draws: list[float] = ((words >> np.uint64(11)) * 2.0**-53).tolist()
    return draws


def _between(low: float, high: float, drawn: float) -> float:
    return low + (high - low) * drawn


def _resized(
    image: PIL.Image.Image,
    width: int,
    height: int,
    *,
    box: tuple[float, float, float, float] | None = None,
) -> PIL.Image.Image:
    import PIL.Image

    return image.resize((width, height), PIL.Image.Resampling.BILINEAR, box=box)
