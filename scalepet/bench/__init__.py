"""scalepet beside PEFT on the user's own machine: time, memory and size of a training step."""

from scalepet.bench.contenders import Contender, contenders
from scalepet.bench.measure import Result, Rounds, measure
from scalepet.bench.report import FILES, conditions, make_folder, table, write_results
from scalepet.bench.shapes import SHAPES, Work, make_work

__all__ = [
    "FILES",
    "SHAPES",
    "Contender",
    "Result",
    "Rounds",
    "Work",
    "conditions",
    "contenders",
    "make_folder",
    "make_work",
    "measure",
    "table",
    "write_results",
]
