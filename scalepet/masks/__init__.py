"""WHICH weights are trained: masks of single entries, their budgets and their files."""

from scalepet.masks.budget import check_budget, count_budget
from scalepet.masks.draw import draw_distinct
from scalepet.masks.files import describe, load_indices, rebuild, save_indices
from scalepet.masks.mask import MaskRule, Overlap, Share, SparseMask
from scalepet.masks.select import select_entries

__all__ = [
    "MaskRule",
    "Overlap",
    "Share",
    "SparseMask",
    "check_budget",
    "count_budget",
    "describe",
    "draw_distinct",
    "load_indices",
    "rebuild",
    "save_indices",
    "select_entries",
]
