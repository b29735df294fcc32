"""What runs show together: tables and figures, made from run folders alone."""

from scalepet.experiments.bars import draw_bench
from scalepet.experiments.compare import compare_table
from scalepet.experiments.curves import draw_curves
from scalepet.experiments.runs import Counts, Result, Run, RunFacts, read_run

__all__ = [
    "Counts",
    "Result",
    "Run",
    "RunFacts",
    "compare_table",
    "draw_bench",
    "draw_curves",
    "read_run",
]
