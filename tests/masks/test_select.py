"""Random masks: exact, uniform, the same everywhere, and fast at eleven billion."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest

from scalepet.errors import ConfigError
from scalepet.masks import MaskRule, SparseMask, select_entries

_SHAPES: dict[str, tuple[int, ...]] = {
    "encoder.0.q": (16, 16),
    "encoder.0.wi": (64, 16),
    "encoder.0.norm": (16,),
    "encoder.1.q": (16, 16),
    "encoder.1.wi": (64, 16),
    "encoder.1.norm": (16,),
    "shared": (100, 16),
}
_GROUPS = {name: name.rpartition(".")[0] or name for name in _SHAPES}


def _to_lists(mask: SparseMask) -> dict[str, list[int]]:
    return {name: row.tolist() for name, row in mask.positions.items()}


@pytest.mark.parametrize("share", ["uniform", "even", "proportional"])
def test_counts_are_exact_for_many_cases(share: Any) -> None:
    rng = np.random.default_rng(5)
    for seed in range(100):
        shapes = {
            f"t{i}": tuple(rng.integers(1, 9, size=rng.integers(1, 4)).tolist()) for i in range(7)
        }
        groups = {name: f"g{int(name[1:]) % 3}" for name in shapes}
        sizes = Counter[str]()
        for name, shape in shapes.items():
            sizes[groups[name]] += math.prod(shape)
        most = 3 * min(sizes.values()) if share == "even" else sum(sizes.values())
        count = int(rng.integers(1, most + 1))
        mask = select_entries(shapes, budget=count, seed=seed, share=share, groups=groups)
        assert mask.count == count
        assert mask.num_eligible == sum(sizes.values())
        assert mask.rule == MaskRule(str(count), count, share, seed)
        assert all(mask.shapes[name] == shapes[name] for name in mask.positions)


def test_uniform_is_uniform_over_subsets_across_tensors() -> None:
    """3 of the 6 entries of three tensors: each of the 20 subsets with the same chance."""
    shapes = {"a": (1,), "b": (1, 2), "c": (3, 1)}
    first_of = {"a": 0, "b": 1, "c": 3}
    num_seeds = 4000
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(num_seeds):
        rows = select_entries(shapes, budget=3, seed=seed).positions
        seen[tuple(sorted(first_of[n] + int(i) for n, row in rows.items() for i in row))] += 1
    expected = num_seeds / 20
    chi_square = sum(
        (seen[subset] - expected) ** 2 / expected for subset in itertools.combinations(range(6), 3)
    )
    assert chi_square < 43.8  # 19 degrees of freedom, one in a thousand


def test_positions_are_pinned() -> None:
    assert _to_lists(select_entries(_SHAPES, budget=12, seed=7)) == {
        "encoder.0.wi": [648],
        "encoder.1.q": [203],
        "encoder.1.wi": [6, 809, 833, 921],
        "shared": [546, 649, 670, 1113, 1242, 1477],
    }
    even = select_entries(_SHAPES, budget=7, seed=7, share="even", groups=_GROUPS)
    assert _to_lists(even) == {
        "encoder.0.wi": [791, 905],
        "encoder.1.wi": [210, 688, 933],
        "shared": [114, 1156],
    }
    proportional = select_entries(
        _SHAPES, budget="0.2%", seed=7, share="proportional", groups=_GROUPS
    )
    assert _to_lists(proportional) == {
        "encoder.0.wi": [791, 905],
        "encoder.1.wi": [210, 688, 933],
        "shared": [324, 380, 855],
    }


@pytest.mark.parametrize("share", ["uniform", "even", "proportional"])
def test_order_of_the_mapping_is_irrelevant(share: Any) -> None:
    turned = dict(reversed(_SHAPES.items()))
    turned_groups = dict(reversed(_GROUPS.items()))
    first = select_entries(_SHAPES, budget=101, seed=3, share=share, groups=_GROUPS)
    second = select_entries(turned, budget=101, seed=3, share=share, groups=turned_groups)
    assert _to_lists(first) == _to_lists(second)
    assert first.checksum == second.checksum


def test_positions_depend_on_name_shape_count_and_seed_alone() -> None:
    """With an even share a layer's mask stays when other layers change, in number and in shape."""
    shapes = {"l0.w": (30, 40), "l1.w": (30, 40)}
    small = select_entries(shapes, budget=20, seed=1, share="even", groups={n: n for n in shapes})
    shapes = {"l0.w": (30, 40), "l2.w": (77, 5), "l1.w": (20, 60), "l3.w": (9, 9)}
    large = select_entries(shapes, budget=40, seed=1, share="even", groups={n: n for n in shapes})
    assert small.positions["l0.w"].tolist() == large.positions["l0.w"].tolist()
    assert small.positions["l1.w"].tolist() != large.positions["l1.w"].tolist()


def test_two_tensors_of_one_shape_differ() -> None:
    shapes = {f"layer.{i}.q": (64, 64) for i in range(12)}
    mask = select_entries(shapes, budget=1200, seed=0, share="even", groups={n: n for n in shapes})
    for first, second in itertools.combinations(mask.positions.values(), 2):
        # 100 * 100 / 4096 = 2.4 expected.
        assert np.intersect1d(first, second).size < 15


def test_seeds_differ_and_repeat() -> None:
    first, again, other = (select_entries(_SHAPES, budget=50, seed=s) for s in (1, 1, -1))
    assert first.checksum == again.checksum != other.checksum


def test_budget_of_everything() -> None:
    mask = select_entries(_SHAPES, budget="100%", seed=0)
    assert _to_lists(mask) == {n: list(range(math.prod(s))) for n, s in _SHAPES.items()}
    by_size = select_entries(_SHAPES, budget="100%", seed=0, share="proportional", groups=_GROUPS)
    assert by_size.checksum == mask.checksum


def test_one_entry_leaves_other_tensors_out() -> None:
    mask = select_entries(_SHAPES, budget=1, seed=0)
    assert len(mask.positions) == len(mask.shapes) == mask.count == 1


def test_tensors_of_one_entry() -> None:
    shapes = {"a": (1, 1), "b": (1,), "c": ()}
    assert _to_lists(select_entries(shapes, budget=3, seed=0)) == {"a": [0], "b": [0], "c": [0]}
    names = [next(iter(select_entries(shapes, budget=1, seed=s).positions)) for s in range(300)]
    assert set(names) == set(shapes) and min(Counter(names).values()) > 60


def test_fewer_entries_than_groups() -> None:
    mask = select_entries(_SHAPES, budget=2, seed=0, share="even", groups=_GROUPS)
    assert mask.count == len({_GROUPS[name] for name in mask.positions}) == 2


def test_large_tensors_take_wide_positions() -> None:
    shapes = {"narrow": (2**15, 2**16), "wide": (2**16, 2**16)}
    mask = select_entries(shapes, budget=1000, seed=0)
    assert mask.positions["narrow"].dtype == np.int32
    assert mask.positions["wide"].dtype == np.int64
    assert mask.positions["wide"][-1] > 2**31


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": {}}, "no tensor is eligible"),
        ({"budget": 5000}, "5,000 entries but 4,192 are eligible"),
        ({"budget": "0%"}, "'0%' is not allowed"),
        ({"share": "fair"}, "'fair' is unknown; allowed: uniform, even, proportional"),
        ({"share": "even"}, "7 of 7 have none: encoder.0.norm, encoder.0.q,.* and 2 more"),
        ({"share": "even", "groups": _GROUPS, "budget": 4000},
         "'encoder.1' has 1,296 eligible entries but its share of 4,000 is 1,33"),
        ({"share": "proportional", "groups": {"shared": "s"}}, "6 of 7 have none"),
    ],
)  # fmt: skip
def test_refusals(changes: dict[str, Any], message: str) -> None:
    request = {"shapes": _SHAPES, "budget": 10, "seed": 0, **changes}
    with pytest.raises(ConfigError, match=message):
        select_entries(request.pop("shapes"), **request)


def test_a_sharded_shape_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="encoder"):
        select_entries({"encoder.0.q": (0,), "shared": (3,)}, budget=1, seed=0)


def test_twelve_million_of_eleven_billion() -> None:
    """The bar is 3 s and 0.5 GiB; the clock gets twice that, since tests share their machine."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(73):
        shapes |= {f"{layer}.attention.{site}": (4096, 4096) for site in "qkvo"}
        shapes |= {f"{layer}.wi": (10240, 4096), f"{layer}.wo": (4096, 10240)}
    assert len(shapes) == 438 and sum(map(math.prod, shapes.values())) == 11_022_630_912
    tracemalloc.start()
    start_seconds = time.perf_counter()
    mask = select_entries(shapes, budget=12_000_000, seed=1)
    passed_seconds = time.perf_counter() - start_seconds
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{passed_seconds:.2f} s, {peak_bytes / 2**20:.0f} MiB")
    assert mask.count == 12_000_000 and len(mask.positions) == 438
    assert passed_seconds < 2 * 3
    assert peak_bytes < 2**29
