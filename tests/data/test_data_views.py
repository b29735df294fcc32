"""Crops against plain references: by hand, in numpy, and by the published formula."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
import scipy.stats

from scalepet.data import Epoch, Picture
from scalepet.data.views import NUM_DRAWS, draw, middle, random_box, random_part, to_rgb, view

SMALL = Picture(size=24, resize=32)
Box = tuple[int, int, int, int]


EXTREME = [(2, 20_000), (1, 60_000), (60_000, 1), (3, 400), (17 * 40, 40), (700, 41)]


@pytest.mark.parametrize(("width", "height"), EXTREME)
def test_of_a_picture_like_a_thread_only_what_is_seen_is_made_large(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 x 20,000 at resize 256 would be 655 million pixels."""
    picture, made = Picture(size=224, resize=256), []
    resize = PIL.Image.Image.resize

    def noted(self: PIL.Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Any:
        made.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(PIL.Image.Image, "resize", noted)
    assert middle(noise(width, height), picture).size == (224, 224)
    assert max(made) <= 16 * 256**2


@pytest.mark.parametrize("size", [(3, 60), (70, 4), (900, 50)])
@pytest.mark.parametrize(
    "picture", [SMALL, Picture(size=32, resize=32), Picture(size=31, resize=32)]
)
def test_it_is_the_same_middle(size: tuple[int, int], picture: Picture) -> None:
    image, short = noise(*size), min(size)
    width, height = (int(picture.resize * side / short) for side in size)
    left, top = (round((side - picture.size) / 2) for side in (width, height))
    box = (left, top, left + picture.size, top + picture.size)
    whole = image.resize((width, height), PIL.Image.Resampling.BILINEAR).crop(box)
    assert np.abs(levels(middle(image, picture)) - levels(whole)).max() <= 1


def noise(width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(values).convert(mode)


def bilinear_weights(num_in: int, num_out: int) -> npt.NDArray[np.float64]:
    """(out, in): a triangle as wide as an output pixel, which is what antialiased means."""
    scale = num_in / num_out
    centres = (np.arange(num_out)[:, None] + 0.5) * scale - 0.5
    weights = 1 - np.abs(np.arange(num_in)[None] - centres) / max(scale, 1)
    weights = np.clip(weights, 0, None)
    return weights / weights.sum(1, keepdims=True)


def resized(values: npt.NDArray[np.float64], width: int, height: int) -> npt.NDArray[np.float64]:
    rows, columns = (
        bilinear_weights(values.shape[0], height),
        bilinear_weights(values.shape[1], width),
    )
    return np.einsum("yh,hwc,xw->yxc", rows, values, columns)


def levels(image: PIL.Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(image, dtype=np.float64)


@pytest.mark.parametrize(
    ("size", "resized_to", "corner"),
    [
        ((64, 64), (32, 32), (4, 4)),
        ((80, 60), (42, 32), (9, 4)),
        ((45, 91), (32, 64), (4, 20)),
        ((20, 10), (64, 32), (20, 4)),
        ((33, 32), (33, 32), (4, 4)),
        ((37, 32), (37, 32), (6, 4)),
        ((32, 32), (32, 32), (4, 4)),
    ],
)
def test_evaluation_sees_the_middle(
    size: tuple[int, int], resized_to: tuple[int, int], corner: tuple[int, int]
) -> None:
    """Corners lie at round(excess / 2), where Python and torchvision round halves to even."""
    image = noise(*size)
    left, top = corner
    seen = middle(image, SMALL)
    whole = image.resize(resized_to, PIL.Image.Resampling.BILINEAR)
    assert seen.size == (24, 24)
    assert np.array_equal(levels(seen), levels(whole)[top : top + 24, left : left + 24])
    expected = resized(levels(image), *resized_to)[top : top + 24, left : left + 24]
    assert np.abs(levels(seen) - expected).max() <= 1.01, "pillow rounds to whole levels twice"


def test_the_published_sizes() -> None:
    seen = middle(noise(640, 480), Picture())
    whole = noise(640, 480).resize((341, 256), PIL.Image.Resampling.BILINEAR)
    assert seen.size == (224, 224)
    assert np.array_equal(levels(seen), levels(whole.crop((58, 16, 282, 240))))


@pytest.mark.parametrize("mirrored", [False, True])
def test_training_sees_the_drawn_part(mirrored: bool) -> None:
    draws = [0.4, 0.6] * 10 + [0.3, 0.7, 0.2 if mirrored else 0.5]
    image = noise(70, 50)
    left, top, right, bottom = random_box(70, 50, draws)
    assert (left, top, right, bottom) == (9, 9, 50, 47), "41 x 38 pixels"
    part = levels(image)[top:bottom, left:right]
    expected = resized(part, 24, 24)[:, :: -1 if mirrored else 1]
    seen = random_part(image, SMALL, draws)
    assert seen.size == (24, 24)
    assert np.abs(levels(seen) - expected).max() <= 1.01


def published_box(width: int, height: int, uniform: Callable[[float, float], float]) -> Box:
    """As in torchvision, with Python's own generator."""
    area = height * width
    for _ in range(10):
        target_area = area * uniform(0.08, 1.0)
        aspect_ratio = math.exp(uniform(math.log(3 / 4), math.log(4 / 3)))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            i = random.randint(0, height - h)
            j = random.randint(0, width - w)
            return j, i, j + w, i + h
    in_ratio = width / height
    if in_ratio < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif in_ratio > 4 / 3:
        h, w = height, round(height * (4 / 3))
    else:
        w, h = width, height
    i, j = (height - h) // 2, (width - w) // 2
    return j, i, j + w, i + h


def ratio_and_place(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    w, h = right - left, bottom - top
    return w * h / width / height, w / h, left / max(width - w, 1), top / max(height - h, 1)


@pytest.mark.parametrize(("width", "height"), [(500, 500), (640, 400), (300, 700)])
def test_random_parts_are_spread_as_published(width: int, height: int) -> None:
    random.seed(1)
    published = [published_box(width, height, random.uniform) for _ in range(4000)]
    ours = [random_box(width, height, draw(Epoch(3, 0), row)) for row in range(4000)]
    for box in ours:
        left, top, right, bottom = box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    columns = [
        np.array([ratio_and_place(box, width, height) for box in boxes]).T
        for boxes in (published, ours)
    ]
    assert columns[1][0].min() == pytest.approx(0.08, abs=0.01)
    assert columns[1][1].min() >= 0.74
    assert columns[1][1].max() <= 1.35
    for name, one, other in zip(("area", "ratio", "left", "top"), *columns, strict=True):
        assert scipy.stats.ks_2samp(one, other).pvalue > 1e-3, name


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506))]
)
def test_where_no_part_fits_the_largest_in_the_middle_is_seen(
    size: tuple[int, int], box: Box
) -> None:
    for row in range(20):
        assert random_box(*size, draw(Epoch(0, 0), row)) == box
        assert published_box(*size, random.uniform) == box


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3)])
def test_the_smallest_pictures(size: tuple[int, int]) -> None:
    for row in range(50):
        assert view(noise(*size), SMALL, draw(Epoch(0, 0), row)).shape == (3, 24, 24)
    assert view(noise(*size), SMALL, None).shape == (3, 24, 24)


def philox(num_words: int, *, key: tuple[int, int], second: int) -> list[int]:
    """Philox 4x64-10 in whole numbers, from the paper; numpy counts blocks from 1."""
    mask = 2**64 - 1
    words: list[int] = []
    for block in range(1, num_words // 4 + 2):
        c0, c1, c2, c3 = block, second, 0, 0
        k0, k1 = key
        for _ in range(10):
            low, high = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
            c0, c1, c2, c3 = (high >> 64) ^ c1 ^ k0, high & mask, (low >> 64) ^ c3 ^ k1, low & mask
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words += [c0, c1, c2, c3]
    return words[:num_words]


@pytest.mark.parametrize(("seed", "epoch", "row"), [(0, 0, 0), (7, 3, 10), (2**64 - 1, 1, 2**40)])
def test_draws_follow_the_published_generator(seed: int, epoch: int, row: int) -> None:
    words = philox(NUM_DRAWS, key=(seed, epoch), second=row + 1)
    assert draw(Epoch(seed, epoch), row) == [(word >> 11) / 2**53 for word in words]


def test_draws_are_of_the_row_the_epoch_and_the_seed() -> None:
    all_draws = {
        tuple(draw(Epoch(seed, epoch), row))
        for seed in range(3)
        for epoch in range(3)
        for row in range(3)
    }
    assert len(all_draws) == 27
    mirrors = [draw(Epoch(0, 0), row)[-1] < 0.5 for row in range(4000)]
    assert abs(sum(mirrors) - 2000) < 5 * math.sqrt(1000)


def test_numbers_go_from_0_to_1_with_channels_first() -> None:
    image = PIL.Image.fromarray(np.array([[[0, 128, 255]]], np.uint8))
    numbers = view(image, Picture(size=2, resize=2), None)
    assert numbers.dtype == np.float32
    assert numbers.flags.c_contiguous
    expected = np.array([0, 128 / 255, 1], np.float32)
    assert np.array_equal(numbers, np.broadcast_to(expected[:, None, None], (3, 2, 2)))


def test_mean_and_std() -> None:
    picture = Picture(size=8, resize=8, mean=(0.1, 0.2, 0.3), std=(0.5, 2.0, 4.0))
    image = noise(8, 8)
    plain = view(image, Picture(size=8, resize=8), None)
    mean, std = (np.array(v)[:, None, None] for v in (picture.mean, picture.std))
    np.testing.assert_allclose(view(image, picture, None), (plain - mean) / std, atol=1e-6)


def test_every_mode_of_8_bits_has_three_channels(recwarn: pytest.WarningsRecorder) -> None:
    grey = noise(5, 4, "L")
    assert np.array_equal(levels(to_rgb(grey)), np.repeat(levels(grey)[..., None], 3, 2))
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        assert to_rgb(noise(5, 4, mode)).mode == "RGB", mode
    clear = noise(5, 4)
    clear.putalpha(0)
    assert np.array_equal(levels(to_rgb(clear)), levels(noise(5, 4))), "alpha is dropped"
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.info["transparency"] = b"\x00\x80"
    assert levels(to_rgb(palette)).tolist() == [[[255, 0, 0]] * 2]
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"its mode is '{mode}', which has more than 8 bits"):
        view(PIL.Image.new(mode, (4, 4)), SMALL, None)
