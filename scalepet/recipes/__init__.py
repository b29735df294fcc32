"""Recipes: whole stories in the order in which they happen."""

from scalepet.recipes.answer import evaluate_adapters, predict, read_files
from scalepet.recipes.continual import Learnt, learn_stream
from scalepet.recipes.export import export_merged
from scalepet.recipes.finetune import finetune
from scalepet.recipes.peft import export_peft, import_peft

__all__ = [
    "Learnt",
    "evaluate_adapters",
    "export_merged",
    "export_peft",
    "finetune",
    "import_peft",
    "learn_stream",
    "predict",
    "read_files",
]
