"""Recipes: whole stories in the order in which they happen."""

from scalepet.recipes.answer import evaluate_adapter, predict, write_answers
from scalepet.recipes.finetune import finetune

__all__ = ["evaluate_adapter", "finetune", "predict", "write_answers"]
