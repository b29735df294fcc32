"""The 11 tasks of the APET study by name, of five types; one more is one more value.

Source: arXiv 2306.02320, for the data sets, the form of the texts and the label words. Where labels
of a test set are hidden (GLUE) or there is no third set (IMDB, NQ-open), the rows that choose the
best step leave the training rows, so that what is reported chooses nothing. Lengths are longer than
the paper's 128 tokens where texts are; what is cut all the same, a run says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from scalepet.data.task import Source, Task

TaskType = Literal["sentiment", "inference", "paraphrase", "question_answering", "summarisation"]

SENTIMENT = ("negative", "positive")
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class CatalogueTask:
    """A published task.

    Args:
        type: what kind of question it asks.
        task: all of it, at its place on the hub.
    """

    type: TaskType
    task: Task


def _classes(
    source: Source,
    inputs: str,
    labels: tuple[str, ...],
    *,
    metrics: tuple[str, ...] = ("accuracy",),
    length: int = 256,
) -> Task:
    return Task(
        kind="classification",
        source=source,
        template=f"Input: {inputs} Output: ",
        target="label",
        labels=labels,
        metrics=metrics,
        max_source_length=length,
        max_target_length=16,
    )


def _texts(
    source: Source, inputs: str, target: str, *, metrics: tuple[str, ...], lengths: tuple[int, int]
) -> Task:
    return Task(
        kind="sequence_to_sequence",
        source=source,
        template=f"Input: {inputs} Output: ",
        target=target,
        metrics=metrics,
        max_source_length=lengths[0],
        max_target_length=lengths[1],
    )


def _glue(subset: str, *, held_out: int, test: str = "validation", **fields: Any) -> Source:
    return Source("nyu-mll/glue", subset=subset, splits={"test": test}, held_out=held_out, **fields)


TASKS: dict[str, CatalogueTask] = {
    "sst2": CatalogueTask(
        "sentiment", _classes(_glue("sst2", held_out=1000), "{sentence}", SENTIMENT, length=128)
    ),
    "rotten_tomatoes": CatalogueTask(
        "sentiment",
        _classes(
            Source("cornell-movie-review-data/rotten_tomatoes", splits={"test": "test"}),
            "{text}",
            SENTIMENT,
            length=128,
        ),
    ),
    "imdb": CatalogueTask(
        "sentiment",
        _classes(
            Source("stanfordnlp/imdb", splits={"test": "test"}, held_out=2000),
            "{text}",
            SENTIMENT,
            length=512,
        ),
    ),
    "mnli": CatalogueTask(
        "inference",
        _classes(
            _glue("mnli", held_out=2000, test="validation_matched"),
            "premise: {premise} hypothesis: {hypothesis}",
            ("entailment", "neutral", "contradiction"),
        ),
    ),
    "qnli": CatalogueTask(
        "inference",
        _classes(
            _glue("qnli", held_out=2000), "question: {question} sentence: {sentence}", ENTAILMENT
        ),
    ),
    "rte": CatalogueTask(
        "inference",
        _classes(
            _glue("rte", held_out=300), "premise: {sentence1} hypothesis: {sentence2}", ENTAILMENT
        ),
    ),
    "mrpc": CatalogueTask(
        "paraphrase",
        _classes(
            _glue("mrpc", held_out=400),
            "sentence 1: {sentence1} sentence 2: {sentence2}",
            ("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
        ),
    ),
    "qqp": CatalogueTask(
        "paraphrase",
        _classes(
            _glue("qqp", held_out=2000, skip_blank=True),
            "question 1: {question1} question 2: {question2}",
            ("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
        ),
    ),
    "nq_open": CatalogueTask(
        "question_answering",
        _texts(
            Source(
                "google-research-datasets/nq_open", splits={"test": "validation"}, held_out=1000
            ),
            "{question}",
            "answer",
            metrics=("exact_match", "token_f1"),
            lengths=(64, 32),
        ),
    ),
    "samsum": CatalogueTask(
        "summarisation",
        _texts(
            Source("knkarthick/samsum", splits={"test": "test"}, eval_rows=500, skip_blank=True),
            "{dialogue}",
            "summary",
            metrics=("rouge_l",),
            lengths=(512, 128),
        ),
    ),
    # The authors' own copy on the hub is a loading script, which datasets no longer runs.
    "multi_news": CatalogueTask(
        "summarisation",
        _texts(
            Source(
                "Awesome075/multi_news_parquet",
                splits={"test": "test"},
                eval_rows=500,
                skip_blank=True,
            ),
            "{document}",
            "summary",
            metrics=("rouge_l",),
            lengths=(2048, 512),
        ),
    ),
}
"""Name -> task. Label words stand in the order of the classes on the hub."""
