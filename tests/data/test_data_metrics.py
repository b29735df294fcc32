import math

import pytest

from scalepet.data import METRICS, majority_share, score
from scalepet.errors import ConfigError


def one(name: str, predictions: list[str], references: list) -> float:  # type: ignore[type-arg]
    labels = ("another class", references[-1]) if name == "f1" else ()
    return score([name], predictions=predictions, references=references, labels=labels)[name]


def test_accuracy_counts_equal_texts() -> None:
    assert one("accuracy", ["a", "b", "B", "c"], ["a", "b", "b", "a"]) == 0.5
    assert one("accuracy", ["a", "b"], [("x", "a"), ("c",)]) == 0.5


def test_macro_f1_weighs_classes_alike() -> None:
    # a: precision 2/3, recall 1, F1 4/5; b: precision 1, recall 1/2, F1 2/3; c (only predicted
    # or only referred to) would be 0.
    assert one("macro_f1", list("aaab"), list("aabb")) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert one("macro_f1", list("ac"), list("ab")) == pytest.approx(1 / 3)


def test_matthews_by_its_formula() -> None:
    # yes as positive: TP 2, FP 1, TN 1, FN 0.
    expected = (2 * 1 - 1 * 0) / math.sqrt(3 * 2 * 2 * 1)
    found = one("matthews", ["yes", "yes", "yes", "no"], ["yes", "yes", "no", "no"])
    assert found == pytest.approx(expected)
    assert one("matthews", ["yes", "yes"], ["yes", "no"]) == 0.0


def test_exact_match_normalises_as_squad_does() -> None:
    predictions = ["The Eiffel  Tower!", "an apple", "theory"]
    references = [("Paris", "eiffel tower"), "apples", "ory"]
    assert one("exact_match", predictions, references) == pytest.approx(1 / 3)


def test_token_f1_takes_the_best_reference() -> None:
    # "cat sat" against "cat sat down": precision 1, recall 2/3.
    assert one("token_f1", ["the cat sat"], [("dog", "a cat sat down")]) == pytest.approx(0.8)
    # A word twice counts twice only where both have it twice: 1 common of 2 and 1.
    assert one("token_f1", ["no no"], ["no"]) == pytest.approx(2 / 3)
    assert one("token_f1", ["the", "the"], ["a", "word"]) == 0.5


def test_rouge_l_by_its_subsequence() -> None:
    # Longest common subsequence "police the gunman" of 4 and 4 words.
    found = one("rouge_l", ["police kill the gunman"], ["police ended the gunman"])
    assert found == pytest.approx(3 / 4)
    assert one("rouge_l", ["kills"], ["kill"]) == 0.0, "no stemming"
    assert one("rouge_l", ["a b"], [("c", "a b")]) == 1.0


def test_bleu_by_its_formula() -> None:
    # Matching 1- to 4-grams 5/6, 3/5, 2/4, 1/3, equal lengths.
    found = one("bleu", ["the cat sat on red mats"], ["the cat sat on the mats"])
    assert found == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # A prediction shorter than its reference pays exp(1 - 6/5).
    assert one("bleu", ["the cat sat on the"], ["the cat sat on the mats"]) == pytest.approx(
        math.exp(1 - 6 / 5)
    )


def test_bleu_takes_different_numbers_of_references() -> None:
    predictions = ["one two three four", "five six seven eight"]
    references = ["one two three four", ("a b c d", "five six seven eight")]
    assert one("bleu", predictions, references) == pytest.approx(1.0)


@pytest.mark.parametrize("name", METRICS)
def test_right_answers_score_one(name: str) -> None:
    texts = ["some words in a row", "other words in a row"]
    assert one(name, texts, texts) == pytest.approx(1.0)


@pytest.mark.parametrize("name", METRICS)
def test_wrong_answers_score_nothing(name: str) -> None:
    assert one(name, ["x", "y"], ["u", "v"]) <= 0.0


def test_f1_is_of_the_last_class() -> None:
    right = ["no", "yes", "yes", "yes", "no"]
    guesses = ["yes", "yes", "no", "yes", "no"]
    precision, recall = 2 / 3, 2 / 3
    found = score(["f1"], predictions=guesses, references=right, labels=("no", "yes"))["f1"]
    assert found == pytest.approx(2 * precision * recall / (precision + recall))
    turned = score(["f1"], predictions=guesses, references=right, labels=("yes", "no"))["f1"]
    assert turned == pytest.approx(1 / 2)


def test_f1_of_a_class_that_no_side_has_is_nothing() -> None:
    assert score(["f1"], predictions=["no"], references=["no"], labels=("no", "yes"))["f1"] == 0.0


def test_scores_keep_the_order_asked_for() -> None:
    found = score(["token_f1", "accuracy"], predictions=["a"], references=["a"])
    assert list(found) == ["token_f1", "accuracy"]


def test_unknown_metrics_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        score(["accuracy", "f2", "rouge"], predictions=["a"], references=["a"])
    assert len(caught.value.faults) == 2
    assert "'f2' is unknown; allowed: accuracy, macro_f1" in caught.value.faults[0]


def test_majority_share() -> None:
    assert majority_share(["a", "b", "b", "c"]) == 0.5
