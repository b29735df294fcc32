"""Published streams by name: their data sets on the hub, templates, label words and orders.

Label words and the form of the texts are those of O-LoRA (arXiv 2310.14152), with two differences.
Its instruction is left out: it lists the labels of the task, which gives the task away. Words that
two data sets mean differently are told apart: topics of AG News end in "news", since Yahoo has
"Sports" too; three stars are "mixed", since "neutral" is a relation of two sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scalepet.data.task import Source, Task


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published stream.

    Args:
        paper: where it is described.
        tasks: name -> data set, in order; one of them if it is divided.
        num_tasks: portions that the classes of the one data set come in; None for a sequence.
        num_classes: different classes of the whole stream.
        shared_labels: a label word that stands in several tasks is one class.
        skip_blank: rows with an empty column of the template are left out.
        train_rows_per_class, train_rows, eval_rows: the most rows of each class, or of each task.
        to_bring: what ``stream.root`` has to hold, where the hub has no copy with these splits.
    """

    paper: str
    tasks: Mapping[str, Task]
    num_classes: int
    num_tasks: int | None = None
    shared_labels: bool = False
    skip_blank: bool = False
    train_rows_per_class: int | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    to_bring: str | None = None


def folder_of(source: Source) -> str:
    """The folder of ``stream.root`` that stands for a hub id: aps/super_glue with the subset cb is
    aps__super_glue__cb.
    """
    return "__".join([*source.path.split("/"), *([source.subset] if source.subset else [])])


def _text(
    path: str,
    template: str,
    labels: tuple[str, ...],
    *,
    subset: str | None = None,
    eval_split: str = "test",
    target: str = "label",
    label_values: dict[bool | int | str, str] | None = None,
) -> Task:
    return Task(
        kind="classification",
        source=Source(path, subset=subset, splits={"eval": eval_split}),
        template=template,
        target=target,
        labels=labels,
        label_values=label_values or {},
        max_source_length=512,
    )


def _glue(subset: str, template: str, labels: tuple[str, ...], *, eval_split: str) -> Task:
    return _text("nyu-mll/glue", template, labels, subset=subset, eval_split=eval_split)


def _super_glue(subset: str, template: str, labels: tuple[str, ...]) -> Task:
    return _text("aps/super_glue", template, labels, subset=subset, eval_split="validation")


def _pictures(path: str, *, template: str = "{image}", target: str = "label") -> Task:
    """Labels are those of the data set."""
    return Task(
        kind="image_classification",
        source=Source(path, splits={"eval": "test"}),
        template=template,
        target=target,
    )


STARS = ("very negative", "negative", "mixed", "positive", "very positive")
NLI = "sentence 1: {premise}\nsentence 2: {hypothesis}"
TRUTH = ("False", "True")

# Words stand in the order of the classes on the hub, whose names differ from them in places.
TEXTS: dict[str, Task] = {
    "ag": _text(
        "fancyzhx/ag_news",
        "Text: {text}",
        ("World news", "Sports news", "Business news", "Science and technology news"),
    ),
    "amazon": _text(
        "yassiracharki/Amazon_Reviews_for_Sentiment_Analysis_fine_grained_5_classes",
        "Title: {review_title}\nText: {review_text}",
        STARS,
        target="class_index",
        label_values=dict(enumerate(STARS, start=1)),
    ),
    "dbpedia": _text(
        "fancyzhx/dbpedia_14",
        "Title: {title}\nText: {content}",
        (
            "Company",
            "Educational Institution",
            "Artist",
            "Athlete",
            "Office Holder",
            "Mean of Transportation",
            "Building",
            "Natural Place",
            "Village",
            "Animal",
            "Plant",
            "Album",
            "Film",
            "Written Work",
        ),
    ),
    "yahoo": _text(
        "community-datasets/yahoo_answers_topics",
        "Title: {question_title}\nQuestion: {question_content}\nAnswer: {best_answer}",
        (
            "Society & Culture",
            "Science & Mathematics",
            "Health",
            "Education & Reference",
            "Computers & Internet",
            "Sports",
            "Business & Finance",
            "Entertainment & Music",
            "Family & Relationships",
            "Politics & Government",
        ),
        target="topic",
    ),
    "yelp": _text("Yelp/yelp_review_full", "Text: {text}", STARS),
    "imdb": _text("stanfordnlp/imdb", "{text}", ("Bad", "Good")),
    "sst2": _glue("sst2", "Text: {sentence}", ("Bad", "Good"), eval_split="validation"),
    "mnli": _glue(
        "mnli", NLI, ("entailment", "neutral", "contradiction"), eval_split="validation_matched"
    ),
    "qqp": _glue(
        "qqp",
        "first sentence: {question1}\nsecond sentence: {question2}",
        TRUTH,
        eval_split="validation",
    ),
    "rte": _super_glue("rte", NLI, ("entailment", "contradiction")),
    "cb": _super_glue("cb", NLI, ("entailment", "contradiction", "neutral")),
    "wic": _super_glue("wic", "word: {word}\n{sentence1}\n{sentence2}", TRUTH),
    "copa": _super_glue(
        "copa",
        'Which sentence is the {question} of "{premise}"? Choose one between A and B.\n'
        "A: {choice1}\nB: {choice2}",
        ("A", "B"),
    ),
    "boolq": _super_glue("boolq", "question: {question}\npassage: {passage}", TRUTH),
    "multirc": _super_glue(
        "multirc",
        "paragraph: {paragraph}\nquestion: {question}\ncandidate answer: {answer}",
        TRUTH,
    ),
}

STANDARD_ORDERS = (
    "dbpedia amazon yahoo ag",
    "dbpedia amazon ag yahoo",
    "yahoo amazon ag dbpedia",
)
FIFTEEN_ORDERS = (
    "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia ag multirc yahoo",
    "multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia ag yelp amazon yahoo",
    "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia ag yahoo multirc boolq wic",
)
MBPA_ORDERS = (
    "yelp ag dbpedia amazon yahoo",
    "dbpedia yahoo ag amazon yelp",
    "yelp yahoo amazon dbpedia ag",
    "ag yelp amazon yahoo dbpedia",
)


def _in_orders(
    name: str, orders: tuple[str, ...], *, max_source_length: int = 512, **fields: Any
) -> dict[str, Benchmark]:
    """Name-1, name-2, ...: the same data sets in each of the orders."""
    tasks = {
        word: replace(task, max_source_length=max_source_length) for word, task in TEXTS.items()
    }
    return {
        f"{name}-{number}": Benchmark(
            tasks={word: tasks[word] for word in order.split()}, skip_blank=True, **fields
        )
        for number, order in enumerate(orders, start=1)
    }


def _divided(
    name: str, task: Task, *, num_tasks: int, num_classes: int, **fields: Any
) -> Benchmark:
    return Benchmark(tasks={name: task}, num_tasks=num_tasks, num_classes=num_classes, **fields)


CIFAR100 = _pictures("uoft-cs/cifar100", template="{img}", target="fine_label")

STREAMS: dict[str, Benchmark] = {
    **_in_orders(
        "standard-cl",
        STANDARD_ORDERS,
        paper="O-LoRA, arXiv 2310.14152: orders 1 to 3; data sets of Zhang et al. 2015",
        num_classes=33,
        train_rows_per_class=1000,
        eval_rows=7600,
    ),
    **_in_orders(
        "15-tasks",
        FIFTEEN_ORDERS,
        paper="Progressive Prompts, arXiv 2301.12314; O-LoRA, arXiv 2310.14152: orders 4 to 6",
        num_classes=42,
        shared_labels=True,
        train_rows_per_class=1000,
        eval_rows=7600,
    ),
    **_in_orders(
        "mbpa",
        MBPA_ORDERS,
        paper="Episodic Memory in Lifelong Language Learning, arXiv 1906.01076: orders i to iv",
        num_classes=33,
        shared_labels=True,
        train_rows=115_000,
        eval_rows=7600,
        max_source_length=128,
    ),
    "cifar100-10x10": _divided(
        "cifar100", CIFAR100, num_tasks=10, num_classes=100, paper="L2P, arXiv 2112.08654"
    ),
    "cifar100-20x5": _divided(
        "cifar100", CIFAR100, num_tasks=20, num_classes=100, paper="LAE, arXiv 2303.10070"
    ),
    "imagenet-r-10x20": _divided(
        "imagenet-r",
        _pictures("imagenet-r"),
        num_tasks=10,
        num_classes=200,
        paper="DualPrompt, arXiv 2204.04799",
        to_bring="a folder imagenet-r with train/<class>/*.jpg and test/<class>/*.jpg, the 24,000"
        " and 6,000 pictures that github.com/google-research/l2p (or CODA-Prompt) lists; the"
        " copies on the hub have one split only",
    ),
    "domainnet-5x69": _divided(
        "domainnet",
        _pictures("wltjr1007/DomainNet"),
        num_tasks=5,
        num_classes=345,
        paper="LAE, arXiv 2303.10070, all six domains together",
    ),
}
"""Name -> stream. The names of pictures count tasks x classes of each."""
