from __future__ import annotations

from pathlib import Path

import pytest

from scalepet.assets.synsets import SUPERSENSES, Synset, read_synsets
from scalepet.errors import DataError

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
NOUN = (
    "00004258 05 n 02 living_thing 0 Animate_Thing 0 005 @ 00003553 n 0000 -c 01651383 a 0000"
    " @i 00004475 n 0000 ~ 00004475 n 0000 + 02620216 v 0201 | a living (or  once living) entity;"
    ' (rare) a thing; "living things grow"; "a stone is  none"  \n'
)
VERB = (
    "00002724 29 v 01 choke 0 002 @ 00001740 v 0000 + 14081734 n 0101 02 + 02 00 + 08 00"
    ' | breathe; as in "choking"  \n'
)
ADJECTIVE = "00013887 00 s 0b " + " ".join(f"w{i}(ip) 0" for i in range(11)) + " 000 | in plenty\n"


def write(raw: Path, name: str, *lines: str) -> None:
    (raw / f"data.{name}").write_text(LICENCE + "".join(lines), encoding="utf-8")


def test_a_line_becomes_a_meaning(tmp_path: Path) -> None:
    write(tmp_path, "noun", NOUN)
    assert read_synsets(tmp_path, "noun") == [
        Synset(
            key="00004258",
            supersense="noun.animal",
            words=("living thing", "Animate Thing"),
            above=("00003553", "00004475"),
            definition="a living (or once living) entity; (rare) a thing",
            examples=("living things grow", "a stone is none"),
        )
    ]


def test_verbs_have_frames_behind_their_pointers(tmp_path: Path) -> None:
    write(tmp_path, "verb", VERB)
    (synset,) = read_synsets(tmp_path, "verb")
    assert (synset.supersense, synset.above) == ("verb.body", ("00001740",))
    # What is quoted inside a definition is no example.
    assert (synset.definition, synset.examples) == ('breathe; as in "choking"', ())


def test_words_are_counted_in_sixteens_and_lose_their_marker(tmp_path: Path) -> None:
    write(tmp_path, "adj", ADJECTIVE)
    (synset,) = read_synsets(tmp_path, "adj")
    assert synset.words == tuple(f"w{i}" for i in range(11))
    assert synset.supersense == "adj.all"


def test_there_are_45_supersenses_26_of_nouns() -> None:
    assert len(set(SUPERSENSES)) == 45
    assert sum(name.startswith("noun.") for name in SUPERSENSES) == 26


def test_lines_that_are_no_synsets_are_named(tmp_path: Path) -> None:
    write(tmp_path, "noun", NOUN, "00004258 05 n 02 living_thing\n", NOUN, "x\n")
    with pytest.raises(DataError, match=r"data.noun: lines \[3, 5\] are no synsets"):
        read_synsets(tmp_path, "noun")
