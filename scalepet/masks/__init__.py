"""WHICH weights are trained: random, structured and scored masks, budgets and files."""

from scalepet.masks.budget import check_budget, count_budget
from scalepet.masks.draw import draw_distinct
from scalepet.masks.files import (
    describe,
    load_indices,
    mask_of_positions,
    rebuild,
    save_indices,
)
from scalepet.masks.mask import Indices, MaskRule, Overlap, Share, SparseMask
from scalepet.masks.select import select_entries
from scalepet.masks.top import ScoreShard, select_top
from scalepet.masks.varint import decode_sorted, encode_sorted

__all__ = [
    "Indices",
    "MaskRule",
    "Overlap",
    "ScoreShard",
    "Share",
    "SparseMask",
    "check_budget",
    "count_budget",
    "decode_sorted",
    "describe",
    "draw_distinct",
    "encode_sorted",
    "load_indices",
    "mask_of_positions",
    "rebuild",
    "save_indices",
    "select_entries",
    "select_top",
]
