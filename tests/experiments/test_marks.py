from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from scalepet.experiments.marks import count_axis, edge_ticks


@pytest.mark.parametrize(
    ("smallest", "largest", "expected"),
    [
        (10, 1e6, ["0", "10", "100", "1k", "10k", "100k", "1M"]),
        (30, 3e8, ["0", "100", "10k", "1M", "100M"]),
        (344_064, 344_064, ["0", "344k"]),
        (200, 900, ["0", "200", "900"]),
    ],
    ids=["each decade", "some of many", "one size", "no decade between"],
)
def test_an_axis_names_decades_or_the_sizes_themselves(smallest, largest, expected) -> None:
    axes = Figure().subplots()
    count_axis(axes, "parameters")
    edge_ticks(axes, smallest=smallest, largest=largest, low="0")
    assert [text.get_text() for text in axes.get_xticklabels()] == expected
