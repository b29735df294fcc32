"""WordNet's own files, read: data.noun, data.verb, data.adj and data.adv.

Source: wndb(5WN), lexnames(5WN) of WordNet 3.1 (Princeton University).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from scalepet.errors import DataError

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
# By number, as every line of the data files has it.
LEXICOGRAPHER_FILES = (
    "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact noun.attribute"
    " noun.body noun.cognition noun.communication noun.event noun.feeling noun.food noun.group"
    " noun.location noun.motive noun.object noun.person noun.phenomenon noun.plant"
    " noun.possession noun.process noun.quantity noun.relation noun.shape noun.state"
    " noun.substance noun.time verb.body verb.change verb.cognition verb.communication"
    " verb.competition verb.consumption verb.contact verb.creation verb.emotion verb.motion"
    " verb.perception verb.possession verb.social verb.stative verb.weather adj.ppl"
)
SUPERSENSES = tuple(LEXICOGRAPHER_FILES.split())
ABOVE = ("@", "@i")  # is a kind of, is an instance of
LINE = re.compile(
    r"(?P<key>\d{8}) (?P<supersense>\d\d) (?P<letter>[nvasr]) (?P<num_words>[0-9a-f]{2}) "
    r"(?P<fields>[^|]*)\| (?P<gloss>.*)"
)
MARKER = re.compile(r"\([a-z]+\)$")  # where an adjective may stand: "galore(ip)"


@dataclass(frozen=True)
class Synset:
    """One meaning.

    Attributes:
        key: where its line begins in the file of its part of speech.
        supersense: the lexicographers' file it stands in, such as "noun.animal".
        words: that have this meaning, the best known first.
        above: keys of what it is a kind or an instance of.
        definition: without the examples.
        examples: sentences or phrases that use one of the words.
    """

    key: str
    supersense: str
    words: tuple[str, ...]
    above: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


def read_synsets(raw: Path, part_of_speech: str) -> list[Synset]:
    """All meanings of one of ``PARTS_OF_SPEECH``, in the order of the file.

    Raises:
        DataError: lines that are not of that form.
    """
    path = raw / f"data.{part_of_speech}"
    lines = path.read_text(encoding="utf-8").split("\n")
    # The licence stands first, every line of it behind two blanks.
    found = [
        (number, LINE.fullmatch(line.rstrip()))
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("  ")
    ]
    odd = [number for number, match in found if match is None]
    if odd:
        raise DataError(f"{path.name}: lines {odd[:5]} are no synsets")
    return [_synset(match) for _, match in found if match is not None]


def _synset(match: re.Match[str]) -> Synset:
    fields = match["fields"].split()
    num_words = int(match["num_words"], 16)
    words, rest = fields[: 2 * num_words : 2], fields[2 * num_words :]
    pointers = rest[1 : 1 + 4 * int(rest[0])]
    definition, _, examples = match["gloss"].partition('; "')
    return Synset(
        key=match["key"],
        supersense=SUPERSENSES[int(match["supersense"])],
        words=tuple(MARKER.sub("", word).replace("_", " ") for word in words),
        above=tuple(_targets(pointers)),
        definition=" ".join(definition.split()),
        examples=tuple(" ".join(text.split()) for text in re.findall(r'"([^"]+)"', f'"{examples}')),
    )


def _targets(pointers: list[str]) -> Iterable[str]:
    symbols, keys = pointers[::4], pointers[1::4]
    return (key for symbol, key in zip(symbols, keys, strict=True) if symbol in ABOVE)
