"""A folder of data files: which split each belongs to. Nothing in it is passed over in silence."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalepet.data.rows import listed
from scalepet.errors import ConfigError

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What a name says, as on the hub: a folder is called so, a file of rows has it as one word."""

TABLES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
PICTURES = "pictures"
_PICTURE_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".jp2", ".j2k", ".avif", ".pcx", ".dds"),
)
_DOCUMENTS = re.compile(
    r"(readme|license|licence|notice|citation|changelog|copying)(\.\w+)?"
    r"|.*\.md|dataset_infos?\.json|thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)
_PART = re.compile(r"(.+)-\d{5}-of-\d{5}")
"""A part of a split as the hub names its files."""

_ALLOWED = (
    "files of rows of one kind (csv, tsv, json, jsonl, parquet), called as their splits, or"
    " pictures in SPLIT/CLASS/ or CLASS/"
)


@dataclass(frozen=True)
class Layout:
    """What a folder holds.

    Attributes:
        kind: "csv", "tsv", "json", "parquet" or "pictures".
        splits: split -> its files, sorted by name.
        roots: of each split of pictures the folder below which the classes begin.
    """

    kind: str
    splits: Mapping[str, list[Path]]
    roots: Mapping[str, Path]


def layout_of(folder: Path) -> Layout:
    """The splits of a folder, by its first level alone: folders that are called as splits, files of
    rows that have a split as one word of their names; everything is "train" where nothing is
    called so. Where one folder is all there is, the first level is the one in it.

    Hidden files (.name, __name__) are no data; nor are tables beside the folders of pictures that
    are not called as a split: they name pictures to answer for, from where their paths begin.

    Raises:
        ConfigError: files of several kinds, or of none; files that belong to no split.
    """
    files = _without_questions(folder, _data_files(folder))
    kind = kind_of(folder, files)
    top = _top(folder, files)
    splits: dict[str, list[Path]] = {}
    names = {_first_below(top, file) for file in files}
    words = {name: split_of(name, is_file=(top / name).is_file(), kind=kind) for name in names}
    if not any(words.values()):
        return Layout(kind, {"train": files}, {"train": top})
    nowhere = sorted(name for name, word in words.items() if not word and (top / name).is_file())
    if nowhere:
        raise ConfigError(
            f"task.source.path {str(folder)!r}: {listed(nowhere)} belongs to no split, while"
            f" {listed(sorted(name for name, word in words.items() if word))} does; allowed: names"
            " with a split in each (train, validation, test), or path csv, json or parquet with"
            " task.source.files"
        )
    for file in files:
        name = _first_below(top, file)
        splits.setdefault(words[name] or name, []).append(file)
    ordered = {name: splits[name] for name in sorted(splits, key=_rank)}
    return Layout(kind, ordered, {words[name] or name: top / name for name in names})


def _without_questions(folder: Path, files: list[Path]) -> list[Path]:
    if not any(_kind_of_file(file) == PICTURES for file in files):
        return files
    return [
        file
        for file in files
        if file.parent != folder
        or _kind_of_file(file) not in TABLES.values()
        or split_of(file.name, is_file=True, kind="") is not None
    ]


def _rank(split: str) -> tuple[int, str]:
    known = list(SPLIT_WORDS)
    return (known.index(split) if split in known else len(known), split)


def split_of(name: str, *, is_file: bool, kind: str) -> str | None:
    """The split that a name of the first level says; None for none.

    Raises:
        ConfigError: it says two.
    """
    if not is_file:
        return next((split for split, words in SPLIT_WORDS.items() if name.lower() in words), None)
    if kind == PICTURES:
        return None
    stem = name.split(".")[0]
    part = _PART.fullmatch(stem)
    said = {word.lower() for word in re.split(r"[-._ 0-9]+", stem)}
    found = [split for split, words in SPLIT_WORDS.items() if said & {*words}]
    if part and (len(found) != 1 or part[1].lower() not in SPLIT_WORDS[found[0]]):
        return part[1]
    if len(found) > 1:
        raise ConfigError(
            f"task.source.path: {name!r} is called as the splits {listed(found)}; allowed: one"
        )
    return found[0] if found else None


def kind_of(folder: Path, files: Sequence[Path]) -> str:
    """The one kind of these files.

    Raises:
        ConfigError: there is none, or several.
    """
    shown = f"task.source.path {str(folder)!r}"
    if not files:
        raise ConfigError(f"{shown} doesn't contain any data files; allowed: {_ALLOWED}")
    kinds = Counter(_kind_of_file(file) for file in files)
    if kinds.keys() == {PICTURES, "metadata"}:
        return PICTURES
    if "metadata" in kinds:  # the name of any table, where there are no pictures
        kinds = Counter(TABLES[_ending(file)] for file in files if _ending(file) in TABLES)
    unknown = [file for file in files if _kind_of_file(file) == "unknown"]
    if unknown:
        names = listed([str(file.relative_to(folder)) for file in unknown])
        raise ConfigError(
            f"{shown} holds {len(unknown)} files that are no data ({names}); allowed: {_ALLOWED}"
        )
    if len(kinds) > 1:
        found = ", ".join(f"{count} of {kind}" for kind, count in sorted(kinds.items()))
        raise ConfigError(f"{shown} holds files of several kinds ({found}); allowed: {_ALLOWED}")
    return next(iter(kinds))


def is_metadata(file: Path) -> bool:
    """Whether it is a table that says what the pictures beside it show."""
    return file.name.lower() in ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def is_document(name: str) -> bool:
    """Whether a file of this name lies beside data and is none."""
    return _DOCUMENTS.fullmatch(name) is not None


def _kind_of_file(file: Path) -> str:
    if is_metadata(file):
        return "metadata"
    ending = _ending(file)
    return PICTURES if ending in _PICTURE_ENDINGS else TABLES.get(ending, "unknown")


def _ending(file: Path) -> str:
    name = file.name.lower()
    for compressed in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(compressed)
    return os.path.splitext(name)[1]


def _data_files(folder: Path) -> list[Path]:
    """All of them, in the order of their names as texts. Links to folders are followed, once."""
    return [Path(file) for file in sorted(_walk(str(folder), str(folder), frozenset()))]


def _walk(folder: str, top: str, above: frozenset[str]) -> Iterator[str]:
    true = os.path.realpath(folder)
    if true in above:
        raise ConfigError(f"task.source.path: {folder!r} is a link to a folder around it")
    for entry in os.scandir(folder):
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, top, above | {true})
        elif not is_document(entry.name):
            yield entry.path


def _first_below(top: Path, file: Path) -> str:
    return file.relative_to(top).parts[0]


def _top(folder: Path, files: Sequence[Path]) -> Path:
    """Where the first level is: one folder alone, which is no split, is looked into."""
    names = {_first_below(folder, file) for file in files}
    only = folder / next(iter(names))
    if len(names) > 1 or not only.is_dir() or split_of(only.name, is_file=False, kind=""):
        return folder
    inside = {_first_below(only, file) for file in files}
    is_of_splits = any(split_of(name, is_file=False, kind="") for name in inside)
    has_files = any((only / name).is_file() for name in inside)
    is_of_pictures = any(_kind_of_file(file) == PICTURES for file in files)
    return only if is_of_splits or (has_files and not is_of_pictures) else folder
