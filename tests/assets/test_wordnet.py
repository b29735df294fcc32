from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from scalepet.assets.synsets import PARTS_OF_SPEECH, SUPERSENSES
from scalepet.assets.wordnet import wordnet_kind, wordnet_match, wordnet_supersense

Rows = list[dict[str, str]]
KINDS = ("animal", "artifact", "food", "plant")


class WordNet:
    """Files in WordNet's form, a meaning a call."""

    def __init__(self, raw: Path) -> None:
        self.raw = raw
        self.lines: dict[str, list[str]] = {name: [] for name in PARTS_OF_SPEECH}

    def add(
        self,
        word: str,
        *,
        supersense: str = "noun.animal",
        above: str | None = None,
        definition: str | None = None,
        examples: tuple[str, ...] = (),
    ) -> str:
        part_of_speech = supersense.partition(".")[0]
        key = f"{sum(map(len, self.lines.values())) + 1:08}"
        pointers = "000" if above is None else f"001 @ {above} n 0000"
        gloss = "; ".join([definition or f"what {word} is", *(f'"{text}"' for text in examples)])
        self.lines[part_of_speech].append(
            f"{key} {SUPERSENSES.index(supersense):02} n 01 {word} 0 {pointers} | {gloss}  \n"
        )
        return key

    def save(self) -> None:
        for name, lines in self.lines.items():
            (self.raw / f"data.{name}").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def wordnet(raw: Path) -> WordNet:
    return WordNet(raw)


def read(folder: Path) -> dict[str, Rows]:
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "test")
    }


def all_rows(folder: Path) -> Rows:
    return [row for rows in read(folder).values() for row in rows]


def add_kinds(wordnet: WordNet) -> dict[str, set[str]]:
    """Ten words below each kind, of which five below a kind of it; word -> what is above it."""
    above = defaultdict(set)
    entity = wordnet.add("entity", supersense="noun.Tops")
    for kind in KINDS:
        top = wordnet.add(kind, supersense=f"noun.{kind}", above=entity)
        pet = wordnet.add(f"pet_{kind}", supersense=f"noun.{kind}", above=top)
        above[kind] = set()
        for i, letter in enumerate("abcdefghij"):
            is_pet = i % 2 == 0
            wordnet.add(f"{letter}{kind}", supersense=f"noun.{kind}", above=pet if is_pet else top)
            above[f"{letter}{kind}"] = {kind, f"pet {kind}"} if is_pet else {kind}
    wordnet.save()
    return above


def test_a_right_kind_is_above_the_word_and_a_wrong_one_is_not(
    wordnet: WordNet, folder: Path
) -> None:
    above = add_kinds(wordnet)
    wordnet_kind(wordnet.raw, folder)
    rows = all_rows(folder)
    assert len(rows) == 80
    for row in rows:
        assert (row["label"] == "yes") == (row["kind"] in above[row["word"]])
        assert row["definition"] == f"what {row['word']} is"
    # Of both steps up: the kind itself, and the kind of that kind.
    assert {row["kind"].startswith("pet ") for row in rows} == {True, False}


def test_no_word_is_in_both_splits_and_none_tells_its_answer(
    wordnet: WordNet, folder: Path
) -> None:
    add_kinds(wordnet)
    wordnet_kind(wordnet.raw, folder)
    parts = read(folder)
    words = {split: sorted(row["word"] for row in rows) for split, rows in parts.items()}
    assert set(words["train"]).isdisjoint(words["test"])
    for rows in parts.values():
        for column in ("word", "definition", "kind"):
            right, wrong = (
                sorted(row[column] for row in rows if row["label"] == label)
                for label in ("yes", "no")
            )
            assert right == wrong


def test_a_kind_of_another_meaning_of_the_word_is_no_wrong_kind(
    wordnet: WordNet, folder: Path
) -> None:
    animal, tool = wordnet.add("beast"), wordnet.add("tool", supersense="noun.artifact")
    for above in (animal, tool):
        wordnet.add("crane", above=above, definition=f"a crane below {above}")
    wordnet.add("hammer", above=tool)
    wordnet.save()
    wordnet_kind(wordnet.raw, folder)
    # "Is a hammer a beast?" would do, "is a crane (the bird) a tool?" would not.
    assert read(folder) == {"train": [], "test": []}


def test_names_and_phrases_are_no_words_to_ask_for(wordnet: WordNet, folder: Path) -> None:
    animal, tool = wordnet.add("beast"), wordnet.add("tool", supersense="noun.artifact")
    for word in ("Fido", "guide_dog", "dog"):
        wordnet.add(word, above=animal)
    wordnet.add("saw", above=tool)
    wordnet.save()
    wordnet_kind(wordnet.raw, folder)
    assert {row["word"] for row in all_rows(folder)} == {"dog", "saw"}


def test_a_sentence_matches_its_own_definition_alone(wordnet: WordNet, folder: Path) -> None:
    for supersense in ("noun.animal", "verb.motion"):
        for i in range(10):
            name = f"{supersense[:4]}{i}"
            examples = (f"a {name}", f"all of them {name}")
            wordnet.add(name, supersense=supersense, examples=examples)
    wordnet.add("silent")
    wordnet.add("curt", examples=("too short indeed",))
    wordnet.save()
    wordnet_match(wordnet.raw, folder)
    parts = read(folder)
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 32, "test": 8}
    for row in all_rows(folder):
        defined, used = row["definition"].split()[1], row["sentence"].split()[-1]
        assert row["sentence"].startswith("all of them")
        assert (row["label"] == "yes") == (defined == used)
        assert defined[:4] == used[:4]


def test_meanings_of_one_word_and_repeated_sentences_do_not_meet(
    wordnet: WordNet, folder: Path
) -> None:
    for definition in ("to go fast", "to flow"):
        wordnet.add("run", definition=definition, examples=(f"she runs {definition} now",))
    wordnet.add("stream", examples=("she runs to flow now",))
    wordnet.save()
    wordnet_match(wordnet.raw, folder)
    assert read(folder) == {"train": [], "test": []}


def test_supersenses_of_nouns_stand_once_for_each_definition(
    wordnet: WordNet, folder: Path
) -> None:
    for i in range(10):
        wordnet.add(f"beast{i}")
        wordnet.add(f"dish{i}", supersense="noun.food")
    wordnet.add("again", definition="what beast0 is")
    wordnet.add("entity", supersense="noun.Tops")
    wordnet.add("run", supersense="verb.motion")
    for supersense in ("noun.animal", "noun.food"):
        wordnet.add("chicken", supersense=supersense, definition="a bird")
    wordnet.save()
    wordnet_supersense(wordnet.raw, folder)
    parts = read(folder)
    rows = {row["text"]: row["label"] for row in all_rows(folder)}
    assert rows == {f"what beast{i} is": "animal" for i in range(10)} | {
        f"what dish{i} is": "food" for i in range(10)
    }
    assert sorted(row["label"] for row in parts["test"]) == ["animal"] * 2 + ["food"] * 2
    assert len(parts["train"]) == 16
