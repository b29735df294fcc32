"""Bytes and seconds of a run before a GPU is touched: arithmetic only.

``shape_of`` a backbone and what is tuned on it make a ``Work``; ``choose_machines`` says on what;
``judge_all`` gives the layouts that fit, with reasons.
"""

from scalepet.planning.activations import Batch, Kept, count_activations
from scalepet.planning.families import shape_of
from scalepet.planning.hardware import GIB, GPUS, Machines, choose_machines
from scalepet.planning.layouts import HPZ_PARTITION, LAYOUTS, Layout, layouts_for
from scalepet.planning.memory import Line, gpu_lines, host_lines
from scalepet.planning.shape import Shape, Tensor
from scalepet.planning.traffic import (
    Traffic,
    count_gathers,
    count_gathers_after_step,
    count_traffic,
)
from scalepet.planning.verdict import Outlook, Verdict, judge, judge_all
from scalepet.planning.work import Work

__all__ = [
    "GIB",
    "GPUS",
    "HPZ_PARTITION",
    "LAYOUTS",
    "Batch",
    "Kept",
    "Layout",
    "Line",
    "Machines",
    "Outlook",
    "Shape",
    "Tensor",
    "Traffic",
    "Verdict",
    "Work",
    "choose_machines",
    "count_activations",
    "count_gathers",
    "count_gathers_after_step",
    "count_traffic",
    "gpu_lines",
    "host_lines",
    "judge",
    "judge_all",
    "layouts_for",
    "shape_of",
]
