"""The figure of a bench run."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure


def draw_bench(folder: Path) -> Path:
    """Step time against the floor's, and what is kept for backward, as bars, from bench.json.

    Returns:
        The file, bench.png in the same folder.
    """
    results = json.loads((folder / "bench.json").read_text(encoding="utf-8"))["results"]
    figure = Figure(figsize=(9, 0.4 * len(results) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [result["name"] for result in results]
    left.barh(names, [result["ratio"] for result in results], color="#4477aa")
    left.axvline(1.0, color="#bbbbbb", linewidth=1)
    left.set_xlabel("step time / frozen floor")
    right.barh(names, [result["kept_bytes"] / 2**20 for result in results], color="#ccbb44")
    right.set_xlabel("kept for backward, MiB")
    left.invert_yaxis()
    path = folder / "bench.png"
    figure.savefig(path, dpi=150)
    return path
