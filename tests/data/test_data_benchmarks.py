"""Published streams: their orders and counts, and that they load from data of the hub's form."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from scalepet.data import encode
from scalepet.data.benchmarks import STREAMS, TEXTS, folder_of
from scalepet.data.stream import StreamSpec
from scalepet.data.stream_rows import load_stream
from scalepet.errors import ConfigError

STANDARD = ("dbpedia", "amazon", "yahoo", "ag")
MBPA = (*STANDARD, "yelp")
SAME_LABELS = (("mnli", "rte", "cb"), ("qqp", "boolq", "multirc", "wic"), ("imdb", "sst2"))
FIFTEEN = (*MBPA, "copa", *(name for group in SAME_LABELS for name in group))

# Written down once more, from the papers' appendices.
ORDERS = {
    "standard-cl-1": "dbpedia > amazon > yahoo > ag",
    "standard-cl-2": "dbpedia > amazon > ag > yahoo",
    "standard-cl-3": "yahoo > amazon > ag > dbpedia",
    "15-tasks-1": "mnli > cb > wic > copa > qqp > boolq > rte > imdb > yelp > amazon > sst2"
    " > dbpedia > ag > multirc > yahoo",
    "15-tasks-2": "multirc > boolq > wic > mnli > cb > copa > qqp > rte > imdb > sst2 > dbpedia"
    " > ag > yelp > amazon > yahoo",
    "15-tasks-3": "yelp > amazon > mnli > cb > copa > qqp > rte > imdb > sst2 > dbpedia > ag"
    " > yahoo > multirc > boolq > wic",
    "mbpa-1": "yelp > ag > dbpedia > amazon > yahoo",
    "mbpa-2": "dbpedia > yahoo > ag > amazon > yelp",
    "mbpa-3": "yelp > yahoo > amazon > dbpedia > ag",
    "mbpa-4": "ag > yelp > amazon > yahoo > dbpedia",
}
PICTURES = {
    "cifar100-10x10": (10, 10),
    "cifar100-20x5": (20, 5),
    "imagenet-r-10x20": (10, 20),
    "domainnet-5x69": (5, 69),
}
SETS = {"standard-cl": STANDARD, "15-tasks": FIFTEEN, "mbpa": MBPA}


@dataclass(frozen=True)
class OnHub:
    """Text columns, the names of the classes, the column that holds them, and the splits."""

    columns: tuple[str, ...]
    names: tuple[str, ...]
    target: str = "label"
    splits: tuple[str, str] = ("train", "test")


VALIDATED = ("train", "validation")
HUB = {
    "fancyzhx__ag_news": OnHub(("text",), ("World", "Sports", "Business", "Sci/Tech")),
    "fancyzhx__dbpedia_14": OnHub(
        ("title", "content"),
        (
            *("Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder"),
            *("MeanOfTransportation", "Building", "NaturalPlace", "Village", "Animal"),
            *("Plant", "Album", "Film", "WrittenWork"),
        ),
    ),
    "community-datasets__yahoo_answers_topics": OnHub(
        ("question_title", "question_content", "best_answer"),
        (
            *("Society & Culture", "Science & Mathematics", "Health", "Education & Reference"),
            *("Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music"),
            *("Family & Relationships", "Politics & Government"),
        ),
        target="topic",
    ),
    "Yelp__yelp_review_full": OnHub(
        ("text",), ("1 star", "2 star", "3 stars", "4 stars", "5 stars")
    ),
    "stanfordnlp__imdb": OnHub(("text",), ("neg", "pos")),
    "nyu-mll__glue__sst2": OnHub(("sentence",), ("negative", "positive"), splits=VALIDATED),
    "nyu-mll__glue__qqp": OnHub(
        ("question1", "question2"), ("not_duplicate", "duplicate"), splits=VALIDATED
    ),
    "nyu-mll__glue__mnli": OnHub(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        splits=("train", "validation_matched"),
    ),
    "aps__super_glue__rte": OnHub(
        ("premise", "hypothesis"), ("entailment", "not_entailment"), splits=VALIDATED
    ),
    "aps__super_glue__cb": OnHub(
        ("premise", "hypothesis"), ("entailment", "contradiction", "neutral"), splits=VALIDATED
    ),
    "aps__super_glue__copa": OnHub(
        ("premise", "choice1", "choice2", "question"), ("choice1", "choice2"), splits=VALIDATED
    ),
    "aps__super_glue__boolq": OnHub(("question", "passage"), ("False", "True"), splits=VALIDATED),
    "aps__super_glue__multirc": OnHub(
        ("paragraph", "question", "answer"), ("False", "True"), splits=VALIDATED
    ),
    "aps__super_glue__wic": OnHub(
        ("word", "sentence1", "sentence2"), ("False", "True"), splits=VALIDATED
    ),
}
AMAZON = "yassiracharki__Amazon_Reviews_for_Sentiment_Analysis_fine_grained_5_classes"


def write_hub(root: Path) -> None:
    """All data sets of text as the hub has them: two rows of each class, one with a blank."""
    for folder, there in HUB.items():
        numbers = [index for index in range(len(there.names)) for _ in range(2)]
        columns = {name: Value("string") for name in there.columns}
        features = Features({**columns, there.target: ClassLabel(names=list(there.names))})
        rows = {name: [f"{name} {there.names[index]}" for index in numbers] for name in columns}
        rows[there.columns[-1]] = [
            " " if row % 2 else text for row, text in enumerate(rows[there.columns[-1]])
        ]
        table = Dataset.from_dict({**rows, there.target: numbers}, features=features)
        DatasetDict(dict.fromkeys(there.splits, table)).save_to_disk(str(root / folder))
    (root / AMAZON).mkdir()
    lines = [f'{stars},"{title}",{stars} stars' for stars in range(1, 6) for title in ("", "So")]
    for split in ("train", "test"):
        text = "\n".join(["class_index,review_title,review_text", *lines])
        (root / AMAZON / f"{split}.csv").write_text(text)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    write_hub(root)
    return root


def test_every_stream_is_checked_here() -> None:
    assert set(STREAMS) == {*ORDERS, *PICTURES}
    assert set(TEXTS) == set(FIFTEEN)
    folders = {folder_of(task.source) for task in TEXTS.values()}
    assert folders == {*HUB, AMAZON}


def test_every_data_set_is_without_fault() -> None:
    tasks = [task for stream in STREAMS.values() for task in stream.tasks.values()]
    assert [fault for task in tasks for fault in task.faults()] == []


@pytest.mark.parametrize("name", ORDERS)
def test_orders(name: str) -> None:
    tasks = list(STREAMS[name].tasks)
    assert tasks == ORDERS[name].split(" > ")
    assert sorted(tasks) == sorted(SETS[name.rpartition("-")[0]])


@pytest.mark.parametrize(
    ("name", "num_classes", "train", "evaluation", "length"),
    [
        ("standard-cl", 33, (1000, None), (None, 7600), 512),
        ("15-tasks", 42, (1000, None), (None, 7600), 512),
        ("mbpa", 33, (None, 115_000), (None, 7600), 128),
    ],
)
def test_published_counts(
    name: str, num_classes: int, train: Any, evaluation: Any, length: int
) -> None:
    for full_name in (full_name for full_name in ORDERS if full_name.startswith(name)):
        stream, spec = STREAMS[full_name], StreamSpec(name=full_name)
        labels = [word for task in stream.tasks.values() for word in task.labels]
        assert len(set(labels)) == stream.num_classes == num_classes
        assert stream.shared_labels == (len(labels) > num_classes)
        assert (spec.row_limits("train"), spec.row_limits("eval")) == (train, evaluation)
        assert {task.max_source_length for task in stream.tasks.values()} == {length}


def test_only_data_sets_that_ask_the_same_share_label_words() -> None:
    groups = (*SAME_LABELS, ("amazon", "yelp"))
    sharing = {
        frozenset((one, other))
        for one in TEXTS
        for other in TEXTS
        if one != other and set(TEXTS[one].labels) & set(TEXTS[other].labels)
    }
    assert sharing == {
        frozenset((one, other)) for group in groups for one in group for other in group
    } - {frozenset((name,)) for name in TEXTS}


@pytest.mark.parametrize("name", ORDERS)
def test_streams_of_text_load_from_data_of_the_form_of_the_hub(
    name: str, hub: Path, tokenizer: Any
) -> None:
    stream, rows = load_stream(StreamSpec(name=name, root=str(hub)))
    assert [experience.name for experience in stream.experiences] == list(STREAMS[name].tasks)
    assert len(stream.classes) == STREAMS[name].num_classes
    for experience, splits in zip(stream.experiences, rows, strict=True):
        num_classes = len(experience.task.labels)
        for split in ("train", "eval"):
            assert len(splits[split]) == num_classes  # one of two rows has a blank
            encoded = encode(experience.task, splits[split], tokenizer=tokenizer, form="choice")
            assert encoded.classes is not None
            assert encoded.classes.tolist() == list(range(num_classes))  # the order of the hub


def test_label_words_stand_for_the_classes_of_the_hub(hub: Path) -> None:
    """Where they differ, by eye: same place, same meaning."""
    pairs = {
        folder_of(task.source): dict(
            zip(HUB[folder_of(task.source)].names, task.labels, strict=True)
        )
        for task in TEXTS.values()
        if folder_of(task.source) in HUB
    }
    assert pairs["aps__super_glue__rte"]["not_entailment"] == "contradiction"
    assert pairs["aps__super_glue__copa"] == {"choice1": "A", "choice2": "B"}
    assert pairs["nyu-mll__glue__qqp"] == {"not_duplicate": "False", "duplicate": "True"}
    assert pairs["stanfordnlp__imdb"] == {"neg": "Bad", "pos": "Good"}
    assert pairs["Yelp__yelp_review_full"]["2 star"] == "negative"
    assert pairs["fancyzhx__ag_news"]["Sci/Tech"] == "Science and technology news"
    same = ["nyu-mll__glue__mnli", "aps__super_glue__cb", "aps__super_glue__wic"]
    assert all(name == word for folder in same for name, word in pairs[folder].items())
    dbpedia = pairs["fancyzhx__dbpedia_14"]
    assert all(word.replace(" ", "").lower() == name.lower() for name, word in dbpedia.items())


def test_what_a_root_lacks_is_listed(tmp_path: Path) -> None:
    (tmp_path / AMAZON).mkdir()
    with pytest.raises(ConfigError) as caught:
        load_stream(StreamSpec(name="standard-cl-1", root=str(tmp_path)))
    lacking = ("fancyzhx__dbpedia_14", "community-datasets__yahoo_answers_topics", "fancyzhx__ag")
    assert len(caught.value.faults) == 3
    for fault, folder in zip(caught.value.faults, lacking, strict=True):
        assert fault.startswith(f"stream.root {str(tmp_path)!r} has no folder '{folder}")


def test_without_the_hub_the_folders_of_a_root_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load_stream(StreamSpec(name="mbpa-1"))
    *faults, hint = caught.value.faults
    assert len(faults) == 5
    assert faults[1].startswith("stream.name mbpa-1: ag.source.path 'fancyzhx/ag_news' cannot be")
    assert hint.startswith("stream.root is not given; allowed, without the hub: a folder with Yelp")
    assert "fancyzhx__ag_news" in hint


def test_other_data_under_a_published_name_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "uoft-cs__cifar100", 20, column="img", target="fine_label")
    with pytest.raises(ConfigError) as caught:
        load_stream(StreamSpec(name="cifar100-10x10", root=str(tmp_path)))
    assert caught.value.faults == (
        "stream.name 'cifar100-10x10' has 100 classes, its data has 20; "
        "allowed: the published data sets",
    )


def picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(file, format="PNG")
    return file.getvalue()


def write_pictures(folder: Path, num_classes: int, *, column: str, target: str) -> None:
    names = [f"thing {number}" for number in range(num_classes)]
    features = Features({column: datasets.Image(), target: ClassLabel(names=names)})
    rows = {column: [{"bytes": picture(), "path": None}] * num_classes}
    table = Dataset.from_dict({**rows, target: list(range(num_classes))}, features=features)
    DatasetDict({"train": table, "test": table}).save_to_disk(str(folder))


def write_picture_folders(folder: Path, num_classes: int) -> None:
    for split in ("train", "test"):
        for number in range(num_classes):
            (folder / split / f"n{number:08}").mkdir(parents=True)
            (folder / split / f"n{number:08}" / "art_0.png").write_bytes(picture())


WRITERS: dict[str, Callable[[Path], None]] = {
    "cifar100": lambda root: write_pictures(
        root / "uoft-cs__cifar100", 100, column="img", target="fine_label"
    ),
    "imagenet-r": lambda root: write_picture_folders(root / "imagenet-r", 200),
    "domainnet": lambda root: write_pictures(
        root / "wltjr1007__DomainNet", 345, column="image", target="label"
    ),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("pictures")
    for write in WRITERS.values():
        write(root)
    yield root


@pytest.mark.parametrize("name", PICTURES)
def test_streams_of_pictures_load_from_data_of_the_form_of_the_hub(
    name: str, pictures: Path
) -> None:
    num_tasks, num_classes = PICTURES[name]
    stream, rows = load_stream(StreamSpec(name=name, root=str(pictures), seed=1))
    assert [len(experience.classes) for experience in stream.experiences] == [
        num_classes
    ] * num_tasks
    assert len(stream.classes) == STREAMS[name].num_classes == num_tasks * num_classes
    for experience, splits in zip(stream.experiences, rows, strict=True):
        encoded = encode(experience.task, splits["eval"], tokenizer=None, form="head")
        assert sorted(encoded.references) == sorted(experience.task.labels)
