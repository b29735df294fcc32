from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from scalepet.data import Encoded, Source, Task, discover_labels, encode, unknown_words
from scalepet.data.encode import NUM_TEXTS_TOKENIZED
from scalepet.errors import ConfigError, DataError

TASK = Task(
    kind="classification",
    source=Source("imdb"),
    template="say {text} now",
    target="label",
    labels=("bad", "very good"),
)
TEXT_TASK = Task(
    kind="sequence_to_sequence", source=Source("imdb"), template="{text}", target="answer"
)
ROWS = Dataset.from_dict({"text": ["one two", "three"], "label": [1, 0]})


def lists(ids: list[Any]) -> list[list[int]]:
    return [row.tolist() for row in ids]


def test_head(tokenizer: Any) -> None:
    encoded = encode(TASK, ROWS, tokenizer=tokenizer, form="head")
    assert lists(encoded.input_ids) == [[3, 4, 5, 6, 1], [3, 7, 6, 1]]
    assert lists(encoded.targets) == [[1], [0]]
    assert encoded.classes is not None
    assert encoded.classes.tolist() == [1, 0]
    assert encoded.references == ["very good", "bad"]
    assert encoded.label_ids is None
    assert encoded.num_rows == 2
    assert {row.dtype for row in encoded.input_ids + encoded.targets} == {np.dtype(np.int32)}


def test_label_words(tokenizer: Any) -> None:
    encoded = encode(TASK, ROWS, tokenizer=tokenizer, form="label_words")
    bad, very_good = [8, 1], [9, 10, 1]
    assert encoded.label_ids is not None
    assert lists(encoded.label_ids) == [bad, very_good]
    assert lists(encoded.targets) == [very_good, bad]
    assert encoded.references == ["very good", "bad"]


def test_text(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": ["a b", "c"], "answer": ["b a", "c"]})
    encoded = encode(TEXT_TASK, rows, tokenizer=tokenizer, form="text")
    assert lists(encoded.targets) == [[4, 3, 1], [5, 1]]
    assert encoded.classes is None
    assert encoded.references == ["b a", "c"]


def test_of_several_answers_the_first_is_learnt(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": ["q", "r"], "answer": [["x y", "z"], ["w"]]})
    encoded = encode(TEXT_TASK, rows, tokenizer=tokenizer, form="text")
    assert encoded.references == [("x y", "z"), ("w",)]
    assert [len(target) for target in encoded.targets] == [3, 2]


def test_numbers_are_formatted(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": [7, 12], "answer": [1.5, 2.0]})
    encoded = encode(TEXT_TASK, rows, tokenizer=tokenizer, form="text")
    assert encoded.references == ["1.5", "2.0"]
    assert set(tokenizer.words) == {"7", "12", "1.5", "2.0"}


def test_class_label_columns(tokenizer: Any) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["very good", "bad"])})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    encoded = encode(TASK, rows, tokenizer=tokenizer, form="head")
    assert encoded.references == ["very good", "bad"]


def test_without_labels(tokenizer: Any) -> None:
    rows = ROWS.remove_columns("label")
    encoded = encode(TASK, rows, tokenizer=tokenizer, form="label_words", labelled=False)
    assert lists(encoded.targets) == [[-100], [-100]]
    assert encoded.classes is None
    assert list(encoded.references) == []
    assert encoded.label_ids is not None


def test_cuts_are_counted_and_keep_the_end(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": ["a b c d", "a b", "a b c"], "answer": ["a b", "a", "b c d"]})
    task = replace(TEXT_TASK, max_source_length=3, max_target_length=2)
    encoded = encode(task, rows, tokenizer=tokenizer, form="text")
    assert lists(encoded.input_ids) == [[3, 4, 1]] * 3
    assert lists(encoded.targets) == [[3, 1], [3, 1], [4, 1]]
    assert (encoded.num_cut_sources, encoded.num_cut_targets) == (2, 2)


def test_a_tokenizer_of_transformers() -> None:
    vocabulary = {"<pad>": 0, "</s>": 1, "[S]": 2, "<unk>": 3, "a": 4, "b": 5, "good": 6, "bad": 7}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[S]", 2), ("</s>", 1)]
    model.post_processor = processors.TemplateProcessing(
        single="[S] $A </s>", pair="[S] $A $B </s>", special_tokens=special
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    rows = Dataset.from_dict({"text": ["a b a b", "b"], "label": ["good", "bad"]})
    task = replace(TASK, template="{text}", labels=("bad", "good"), max_source_length=4)
    encoded = encode(task, rows, tokenizer=fast, form="label_words")
    assert lists(encoded.input_ids) == [[2, 4, 5, 1], [2, 5, 1]]
    assert lists(encoded.targets) == [[2, 6, 1], [2, 7, 1]]
    assert encoded.num_cut_sources == 1


def test_texts_are_tokenized_in_batches(tokenizer: Any) -> None:
    num_rows = 2 * NUM_TEXTS_TOKENIZED + 1
    texts = [f"w{row}" for row in range(num_rows)]
    rows = Dataset.from_dict({"text": texts, "label": [0] * num_rows})
    task = replace(TASK, template="{text}")
    encoded = encode(task, rows, tokenizer=tokenizer, form="head")
    assert lists(encoded.input_ids) == [[3 + row, 1] for row in range(num_rows)]
    assert tokenizer.num_calls == 3


def test_cuts_are_counted_over_all_batches(tokenizer: Any) -> None:
    num_rows = NUM_TEXTS_TOKENIZED + 1
    texts = ["a b c d", *["a b"] * (num_rows - 2), "a b c d"]
    rows = Dataset.from_dict({"text": texts, "label": [0] * num_rows})
    task = replace(TASK, template="{text}", max_source_length=4)
    encoded = encode(task, rows, tokenizer=tokenizer, form="head")
    assert encoded.num_cut_sources == 2
    assert lists([encoded.input_ids[0], encoded.input_ids[-1]]) == [[3, 4, 5, 1]] * 2


def test_fingerprints_tell_data_apart(tokenizer: Any) -> None:
    def fingerprint(task: Task = TASK, rows: Dataset = ROWS, form: Any = "head") -> str:
        return encode(task, rows, tokenizer=tokenizer, form=form).fingerprint

    same = fingerprint()
    assert same == fingerprint()
    assert len(same) == 32
    assert same != fingerprint(rows=ROWS.select([1, 0]))
    assert same != fingerprint(rows=ROWS.select([0]))
    assert same != fingerprint(task=replace(TASK, template="{text}"))
    assert same != fingerprint(task=replace(TASK, label_values={1: "bad", 0: "very good"}))
    assert same != fingerprint(form="label_words")


def test_fingerprints_see_where_rows_end_and_stay_the_same_forever() -> None:
    def encoded(*rows: list[int]) -> Encoded:
        ids = [np.array(row, np.int32) for row in rows]
        targets = [np.array([0], np.int32)] * 2
        return Encoded(form="head", input_ids=ids, targets=targets)

    assert encoded([1, 2], [3]).fingerprint != encoded([1], [2, 3]).fingerprint
    assert encoded([1, 2], [3]).fingerprint == "022019d744deccd2cbbda9ef0ea8f0c6"


BAD_TEXTS = Dataset.from_dict(
    {
        "text": ["a", None, "c", " ", "e", None, None, None, None],
        "label": [0, 1, 2, 0, -1, 1, 1, 1, 1],
    }
)


def test_bad_rows_are_refused_together(tokenizer: Any) -> None:
    with pytest.raises(DataError) as caught:
        encode(TASK, BAD_TEXTS, tokenizer=tokenizer, form="head")
    texts, labels = caught.value.faults
    assert texts == (
        "column 'text': 6 of 9 rows cannot be used (row 1: None, row 3: ' ', row 5: None, "
        "row 6: None, row 7: None, and 1 more); allowed: text that is not blank, or numbers"
    )
    assert labels == (
        "column 'label': 2 of 9 rows cannot be used (row 2: 2, row 4: -1); "
        "allowed: bad, very good, 0, 1"
    )


@pytest.mark.parametrize("value", ["Bad", "bad ", "", "2", None])
def test_labels_outside_the_label_words(tokenizer: Any, value: str | None) -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "label": ["bad", value]})
    with pytest.raises(DataError) as caught:
        encode(TASK, rows, tokenizer=tokenizer, form="head")
    assert f"row 1: {value!r}" in str(caught.value)
    assert "allowed: bad, very good, 0, 1" in str(caught.value)


@pytest.mark.parametrize("value", [True, 0.5, 2.0])
def test_labels_of_other_types(tokenizer: Any, value: object) -> None:
    rows = Dataset.from_dict({"text": ["a"], "label": [value]})
    with pytest.raises(DataError, match="row 0: "):
        encode(TASK, rows, tokenizer=tokenizer, form="head")


@pytest.mark.parametrize("value", [["x", None], [], [" "], None, ""])
def test_bad_answers(tokenizer: Any, value: object) -> None:
    good = ["x"] if isinstance(value, list) else "x"
    rows = Dataset.from_dict({"text": ["a", "b"], "answer": [good, value]})
    with pytest.raises(DataError, match="column 'answer': 1 of 2 rows") as caught:
        encode(TEXT_TASK, rows, tokenizer=tokenizer, form="text")
    assert f"row 1: {value!r}" in str(caught.value)


class KnowingTokenizer:
    """Knows the letters a to h; 3 is what it does not know."""

    def __init__(self, *, end: int = 1) -> None:
        self.eos_token_id, self.unk_token_id = end, 3

    def __call__(self, texts: list[str], /, **options: Any) -> Any:
        ids = [[self._id(word) for word in text.split()] for text in texts]
        return {"input_ids": [[*of_text, self.eos_token_id] for of_text in ids]}

    def _id(self, word: str) -> int:
        return 4 + "abcdefgh".index(word) if word in "abcdefgh" else 3


def test_unknown_tokens_are_said_with_their_number() -> None:
    answers = ["~", "^", "{", "a"] * 12
    rows = Dataset.from_dict({"text": ["a", "b", "c", "?"] * 12, "answer": answers})
    encoded = encode(TEXT_TASK, rows, tokenizer=KnowingTokenizer(), form="text")
    assert encoded.unknown == {"texts": (12, 48), "targets": (36, 48)}
    first, second = unknown_words(encoded, "train")
    assert first.startswith("train: 12 of 48 texts have unknown tokens")
    assert second.startswith("train: 36 of 48 targets have unknown tokens")


def test_unknown_tokens_of_templates_and_label_words() -> None:
    task = replace(TASK, labels=("a", "b ^"), template="? {text}")
    rows = Dataset.from_dict({"text": ["a", "b"], "label": ["a", "a"]})
    own = {"templates": (1, 1), "texts": (2, 2)}
    for form, found in (("choice", {**own, "label words": (1, 2)}), ("head", own)):
        encoded = encode(task, rows, tokenizer=KnowingTokenizer(), form=form)  # type: ignore[arg-type]
        assert encoded.unknown == found


def test_a_tokenizer_whose_unknown_token_is_its_end_knows_all() -> None:
    rows = Dataset.from_dict({"text": ["a"], "answer": ["b"]})
    encoded = encode(TEXT_TASK, rows, tokenizer=KnowingTokenizer(end=3), form="text")
    assert encoded.unknown == {}


NESTED = {
    "translation": [{"en": "a", "de": "b"}, {"en": "c", "de": "d"}],
    "answers": [{"text": ["x", "y"], "start": [0, 1]}, {"text": ["z"], "start": [2]}],
}


def test_templates_and_targets_reach_into_columns(tokenizer: Any) -> None:
    rows = Dataset.from_dict(NESTED)
    task = replace(TEXT_TASK, template="{translation.en}", target="translation.de")
    encoded = encode(task, rows, tokenizer=tokenizer, form="text")
    assert encoded.references == ["b", "d"] and list(tokenizer.words) == ["a", "c", "b", "d"]
    task = replace(TEXT_TASK, template="{translation.en}", target="answers.text")
    assert encode(task, rows, tokenizer=tokenizer, form="text").references == [("x", "y"), ("z",)]
    plain = Dataset.from_dict({**NESTED, "translation.en": ["e", "f"]})
    encode(task, plain, tokenizer=tokenizer, form="text")
    assert {"e", "f"} <= {*tokenizer.words}


def test_labels_within_a_column_are_found() -> None:
    features = Features({"of": {"label": ClassLabel(names=["n", "y"])}})
    rows = Dataset.from_dict({"of": [{"label": 1}, {"label": 0}]}, features=features)
    assert discover_labels(rows, "of.label") == ("n", "y")
    assert discover_labels(Dataset.from_dict({"of": [{"a": 2}, {"a": 1}]}), "of.a") == ("1", "2")


def test_columns_with_fields_are_refused_by_what_they_hold(tokenizer: Any) -> None:
    rows = Dataset.from_dict(NESTED)
    task = replace(TEXT_TASK, template="{translation}", target="answers.text")
    with pytest.raises(DataError, match=r"its fields are \{translation\.en\}, \{translation\.de\}"):
        encode(task, rows, tokenizer=tokenizer, form="text")
    task = replace(TEXT_TASK, template="{translation.fr}", target="answers.text")
    with pytest.raises(DataError, match=r"'translation\.fr' is missing; columns: translation\.en,"):
        encode(task, rows, tokenizer=tokenizer, form="text")


def test_missing_columns_are_refused_together(tokenizer: Any) -> None:
    task = replace(TASK, template="{text} {premise}", target="gold")
    with pytest.raises(DataError) as caught:
        encode(task, ROWS, tokenizer=tokenizer, form="head")
    assert caught.value.faults == (
        "column 'premise' is missing; columns: text, label",
        "column 'gold' is missing; columns: text, label",
    )


@pytest.mark.parametrize(
    ("task", "form", "allowed"),
    [(TASK, "text", "head, label_words"), (TEXT_TASK, "head", "text")],
)
def test_forms_that_do_not_fit(tokenizer: Any, task: Task, form: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot take form '{form}'; allowed: {allowed}"):
        encode(task, ROWS, tokenizer=tokenizer, form=form)


def test_faults_of_the_task_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"task\.metrics has 'x'"):
        encode(replace(TASK, metrics=("x",)), ROWS, tokenizer=tokenizer, form="head")


def test_label_words_with_the_same_tokens(tokenizer: Any) -> None:
    task = replace(TASK, labels=("bad", "BAD", "good"))
    with pytest.raises(ConfigError, match=r"'bad' and 'BAD' have the same tokens \[\d+, 1\]"):
        encode(task, ROWS, tokenizer=tokenizer, form="label_words")
    assert encode(task, ROWS, tokenizer=tokenizer, form="head").num_rows == 2


def test_label_words_are_never_cut(tokenizer: Any) -> None:
    task = replace(TASK, max_target_length=2)
    with pytest.raises(ConfigError, match="max_target_length is 2, but 1 label words of bad, very"):
        encode(task, ROWS, tokenizer=tokenizer, form="label_words")


@pytest.mark.parametrize(
    ("task", "form", "text"), [(TASK, "label_words", "bad"), (TEXT_TASK, "text", "b a")]
)
def test_targets_without_an_end(word_tokenizer: Any, task: Task, form: Any, text: str) -> None:
    rows = Dataset.from_dict({"text": ["a"], "answer": ["b a"], "label": [0]})
    tokenizer = word_tokenizer(has_end=False)
    with pytest.raises(ConfigError, match=f"ends the target '{text}' .* its end token 1"):
        encode(task, rows, tokenizer=tokenizer, form=form)


def test_texts_without_a_token(word_tokenizer: Any) -> None:
    tokenizer = word_tokenizer(has_end=False)
    tokenizer.eos_token_id = None
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    original = tokenizer._ids
    tokenizer._ids = lambda text, length: [] if text == "b" else original(text, length)
    with pytest.raises(DataError, match=r"1 of 2 texts have no token \(row 1: 'b'\)"):
        encode(replace(TASK, template="{text}"), rows, tokenizer=tokenizer, form="head")
