"""What runs show together: tables and figures, made from run folders alone.

``study_report`` is imported where it is used: it plans masks, which loads all of scalepet.
"""

from scalepet.experiments.bars import draw_bench
from scalepet.experiments.compare import compare_table
from scalepet.experiments.curves import draw_curves
from scalepet.experiments.runs import Counts, Result, Run, RunFacts, is_study, read_run
from scalepet.experiments.stream_figures import draw_matrix, draw_stream_curves
from scalepet.experiments.streams import StreamRun, is_stream, read_stream, stream_table

__all__ = [
    "Counts",
    "Result",
    "Run",
    "RunFacts",
    "StreamRun",
    "compare_table",
    "draw_bench",
    "draw_curves",
    "draw_matrix",
    "draw_stream_curves",
    "is_stream",
    "is_study",
    "read_run",
    "read_stream",
    "stream_table",
]
