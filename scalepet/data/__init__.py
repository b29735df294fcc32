"""Data: what a task is, where its rows come from, how they become batches, how answers are scored.

Rank and world size come in as numbers, tokenizers as callables. ``import scalepet.data`` loads
numpy only; torch and datasets follow where they are used.
"""

from scalepet.data.batch import FILLER, Batch, Epoch
from scalepet.data.benchmarks import STREAMS, Benchmark
from scalepet.data.encode import Tokenizer, encode, encode_label_words, unknown_words
from scalepet.data.encoded import Encoded
from scalepet.data.examples import Examples
from scalepet.data.forms import IGNORED, WORD_FORMS, Form
from scalepet.data.joined import joined
from scalepet.data.labels import check_classes, discover_labels
from scalepet.data.loader import EvalLoader, Step, TrainLoader
from scalepet.data.matrix import AccuracyMatrix, Results
from scalepet.data.metrics import METRICS, Metric, Reference, majority_share, score
from scalepet.data.picture import NUM_CHANNELS, Picture
from scalepet.data.pictures import Pictures
from scalepet.data.rows import Rows, check_columns
from scalepet.data.sources import Splits, load_split, load_splits, missing_files, rows_of
from scalepet.data.stream import Experience, Stream, StreamSpec
from scalepet.data.stream_rows import load_stream
from scalepet.data.task import Kind, Source, Task
from scalepet.data.tasks import TASKS, CatalogueTask, TaskType

__all__ = [
    "FILLER",
    "IGNORED",
    "METRICS",
    "NUM_CHANNELS",
    "STREAMS",
    "TASKS",
    "WORD_FORMS",
    "AccuracyMatrix",
    "Batch",
    "Benchmark",
    "CatalogueTask",
    "Encoded",
    "Epoch",
    "EvalLoader",
    "Examples",
    "Experience",
    "Form",
    "Kind",
    "Metric",
    "Picture",
    "Pictures",
    "Reference",
    "Results",
    "Rows",
    "Source",
    "Splits",
    "Step",
    "Stream",
    "StreamSpec",
    "Task",
    "TaskType",
    "Tokenizer",
    "TrainLoader",
    "check_classes",
    "check_columns",
    "discover_labels",
    "encode",
    "encode_label_words",
    "joined",
    "load_split",
    "load_splits",
    "load_stream",
    "majority_share",
    "missing_files",
    "rows_of",
    "score",
    "unknown_words",
]
