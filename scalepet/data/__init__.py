"""Data: what a task is, where its rows come from, how they become batches, how answers are scored.

Rank and world size come in as numbers, tokenizers as callables. ``import scalepet.data`` loads
numpy only; torch and datasets follow where they are used.
"""

from scalepet.data.batch import FILLER, Batch
from scalepet.data.encode import Tokenizer, encode
from scalepet.data.encoded import IGNORED, Encoded, Form
from scalepet.data.labels import discover_labels
from scalepet.data.loader import EvalLoader, Step, TrainLoader
from scalepet.data.metrics import METRICS, Metric, Reference, majority_share, score
from scalepet.data.rows import Rows, check_columns
from scalepet.data.sources import load_split, missing_files, rows_of
from scalepet.data.task import Kind, Source, Task

__all__ = [
    "FILLER",
    "IGNORED",
    "METRICS",
    "Batch",
    "Encoded",
    "EvalLoader",
    "Form",
    "Kind",
    "Metric",
    "Reference",
    "Rows",
    "Source",
    "Step",
    "Task",
    "Tokenizer",
    "TrainLoader",
    "check_columns",
    "discover_labels",
    "encode",
    "load_split",
    "majority_share",
    "missing_files",
    "rows_of",
    "score",
]
