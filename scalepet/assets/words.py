"""Word to word: how a mistyped one is spelt, and how a word is said. Columns text, target.

Words that begin with the same four letters are in one split: "abandon" and "abandoned" never part.
Each converter returns what was done, for the asset's SOURCE.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from scalepet.assets.rows import Row, in_order, write_rows
from scalepet.assets.splits import SEED, TEST_SHARE, split
from scalepet.errors import DataError

NUM_LETTERS = 4
TYPOS_FILE = "dictionary.txt"
SOUNDS_FILE = "cmudict.dict"
ARROW = "->"


def typos(raw: Path, folder: Path) -> str:
    """Mistyped words and the word meant, where codespell knows one single word for it.

    Raises:
        DataError: lines that are not a typo, an arrow and a correction.
    """
    lines = (raw / TYPOS_FILE).read_text(encoding="utf-8").splitlines()
    odd = [number for number, line in enumerate(lines, 1) if line.count(ARROW) != 1]
    if odd:
        raise DataError(f"{TYPOS_FILE}: lines {odd[:5]} are not typo{ARROW}word")
    pairs = [line.split(ARROW) for line in lines]
    rows = [{"text": typo, "target": word} for typo, word in pairs if _is_word(typo, word)]
    note = "Typos of one known correction, letters a to z on both sides."
    return f"{note} {_write(folder, rows, column='target')}"


def pronounce(raw: Path, folder: Path) -> str:
    """Words and the phones of the first way to say them, stress as a digit behind a vowel.

    Raises:
        DataError: lines without a phone.
    """
    lines = (raw / SOUNDS_FILE).read_text(encoding="utf-8").splitlines()
    said = [line.partition("#")[0].split() for line in lines]
    odd = [number for number, fields in enumerate(said, 1) if len(fields) < 2]
    if odd:
        raise DataError(f"{SOUNDS_FILE}: lines {odd[:5]} are not a word and its phones")
    # A second way to say it is named "word(2)".
    rows = [{"text": word, "target": " ".join(phones)} for word, *phones in said if _is_word(word)]
    note = "Words of letters a to z; of several ways to say one the first."
    return f"{note} {_write(folder, rows, column='text')}"


def _is_word(*texts: str) -> bool:
    return all(text.isascii() and text.isalpha() and text.islower() for text in texts)


def _write(folder: Path, rows: Sequence[Row], *, column: str) -> str:
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row[column][:NUM_LETTERS]].append(row)
    parts = split(families, key=str, stratum=lambda _: "all")
    told = write_rows(
        folder,
        {
            name: in_order((row for key in part for row in families[key]), key=_text)
            for name, part in parts.items()
        },
    )
    share = f"{TEST_SHARE:.0%} of the beginnings of {NUM_LETTERS} letters"
    return f"Split by scalepet: {share} are the test set (seed {SEED}). {told}"


def _text(row: Row) -> str:
    return row["text"]
