from __future__ import annotations

import numpy as np

from scalepet.experiments.style import COLOURS, apart, look, short


def test_labels_keep_their_distance_and_their_order() -> None:
    assert apart([10.0, 90.0, 50.0], gap=15, top=100) == [10, 90, 50]
    assert apart([50.0, 52.0], gap=10, top=100) == [46, 56]
    assert apart([99.0, 98.0, 0.0], gap=10, top=100) == [100, 90, 0]
    assert apart([1.0, 0.0, 12.0], gap=10, top=100) == [10, 0, 20]
    crowd = [float(x) for x in np.random.default_rng(0).uniform(0, 100, 9)]
    placed = apart(crowd, gap=10, top=100)
    assert np.array_equal(np.argsort(placed), np.argsort(crowd))
    assert np.diff(sorted(placed)).min() >= 10 - 1e-9
    assert min(placed) >= 0 and max(placed) <= 100 + 1e-9


def test_looks_and_names_stayapart() -> None:
    assert len({look(place) for place in range(4 * len(COLOURS))}) == 4 * len(COLOURS)
    assert short("x" * 32) == "x" * 32
    assert len(short("x" * 33)) == 32
