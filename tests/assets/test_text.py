from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from scalepet.assets import text
from scalepet.errors import DataError

Rows = list[dict[str, str]]


def read(folder: Path, split: str) -> Rows:
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_tables(raw: Path, train: str, test: str) -> None:
    header = "Category\tText\nd\tstring\nclass\t\n\n"
    (raw / "news-train.tab").write_text(header + train, encoding="utf-8")
    (raw / "news-test.tab").write_text(header + test, encoding="utf-8")


def test_orange_tables_keep_the_split_of_the_package(raw: Path, folder: Path) -> None:
    write_tables(
        raw, "sci.space\tthe moon \u2028rises \nrec.autos\ta  car\n\t\n", "rec.autos\tél\n"
    )
    done = text.orange_tables(raw, folder)
    train = sorted(read(folder, "train"), key=lambda row: row["label"])
    assert train == [
        {"text": "a car", "label": "rec.autos"},
        {"text": "the moon rises", "label": "sci.space"},
    ]
    assert read(folder, "test") == [{"text": "él", "label": "rec.autos"}]
    assert "2 rows in train.jsonl and 1 rows in test.jsonl" in done


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("a\tb\tc", r"rows \[1\] do not have 2 fields"),
        ("only a text", r"rows \[1\] do not have 2 fields"),
        ("\ta text", r"rows \[1\] have a text or a label, not both"),
        ("a.label\t ", r"rows \[1\] have a text or a label, not both"),
    ],
)
def test_a_broken_table_is_refused(raw: Path, folder: Path, line: str, fault: str) -> None:
    write_tables(raw, f"x\ty\n{line}\n", "x\ty\n")
    with pytest.raises(DataError, match=f"news-train.tab: {fault}"):
        text.orange_tables(raw, folder)


def write_reviews(raw: Path, domain: str, num_each: int) -> None:
    items: list[dict[str, object]] = [
        {"text": f"{domain} review {i} ", "class": i % 2} for i in range(2 * num_each)
    ]
    blank: dict[str, object] = {"text": "", "class": None}
    (raw / f"{domain}.json").write_text(json.dumps([*items, blank]))


def test_sentiment_is_split_within_each_domain_and_label(raw: Path, folder: Path) -> None:
    write_reviews(raw, "imdb", 10)
    write_reviews(raw, "yelp", 5)
    text.sentiment(raw, folder)
    kinds = {
        split: Counter((row["domain"], row["label"]) for row in read(folder, split))
        for split in ("train", "test")
    }
    labels = ("negative", "positive")
    assert kinds["test"] == {("imdb", k): 2 for k in labels} | {("yelp", k): 1 for k in labels}
    assert kinds["train"] == {("imdb", k): 8 for k in labels} | {("yelp", k): 4 for k in labels}
    rows = read(folder, "train") + read(folder, "test")
    assert len({row["text"] for row in rows}) == 30
    assert {"text": "imdb review 3", "label": "positive", "domain": "imdb"} in rows


def test_a_sentence_of_no_class_is_refused(raw: Path, folder: Path) -> None:
    (raw / "imdb.json").write_text('[{"text": "fine", "class": 1}, {"text": "odd", "class": 2}]')
    with pytest.raises(DataError, match=r"imdb.json: rows \[1\]"):
        text.sentiment(raw, folder)


def write_wiki(raw: Path) -> None:
    topics = ["Arts"] * 20 + ["History"] * 10 + ["Uncategorized"] * 10
    articles = {
        f"title {i}": {
            "title": f"title {i}",
            "extract": f"passage\n{i}",
            "description": "" if i % 10 == 0 else f"thing {i}",
            "topic": topic,
        }
        for i, topic in enumerate(topics)
    }
    (raw / text.WIKI_FILE).write_text(json.dumps(articles))


def test_wiki_topic_leaves_out_articles_without_a_topic(raw: Path, folder: Path) -> None:
    write_wiki(raw)
    text.wiki_topic(raw, folder)
    train, test = read(folder, "train"), read(folder, "test")
    assert Counter(row["label"] for row in train) == {"Arts": 16, "History": 8}
    assert Counter(row["label"] for row in test) == {"Arts": 4, "History": 2}
    expected = {f"passage {i}": "Arts" if i < 20 else "History" for i in range(30)}
    assert {row["text"]: row["label"] for row in train + test} == expected


def test_wiki_describe_is_split_as_wiki_topic_is(raw: Path, folder: Path) -> None:
    write_wiki(raw)
    text.wiki_describe(raw, folder)
    described = {split: read(folder, split) for split in ("train", "test")}
    expected = {f"passage {i}": f"thing {i}" for i in range(40) if i % 10}
    rows = described["train"] + described["test"]
    assert {row["text"]: row["target"] for row in rows} == expected
    text.wiki_topic(raw, folder)
    for split, other in (("train", "test"), ("test", "train")):
        topical = {row["text"] for row in read(folder, other)}
        assert not topical & {row["text"] for row in described[split]}


def test_the_order_depends_on_the_texts_alone(raw: Path, folder: Path) -> None:
    lines = [f"label{i % 3}\ttext {i}" for i in range(30)]
    write_tables(raw, "\n".join(lines), "a\tb")
    text.orange_tables(raw, folder)
    forward = read(folder, "train")
    write_tables(raw, "\n".join(reversed(lines)), "a\tb")
    text.orange_tables(raw, folder)
    assert read(folder, "train") == forward
    # Written down, so that a release that changes everybody's split cannot pass unseen.
    assert [row["text"] for row in forward[:4]] == ["text 3", "text 22", "text 28", "text 2"]
