"""From rows to what a backbone reads: every row is encoded or refused, every cut is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from scalepet.data.encoded import Encoded
from scalepet.data.examples import Examples
from scalepet.data.forms import CLASS_FORMS, FORM_KINDS, IGNORED, WORD_FORMS, Form, Ids
from scalepet.data.labels import read_classes
from scalepet.data.metrics import Reference
from scalepet.data.pictures import encode_pictures
from scalepet.data.rows import BadRows, Rows, check_columns, listed, read_rows
from scalepet.data.task import Task
from scalepet.data.template import parse_template, render, value_text
from scalepet.errors import ConfigError, DataError

NUM_TEXTS_TOKENIZED = 1000
NUM_CHARS_SHOWN = 60
MAX_TEMPLATE = 100_000
TEXT = "text that is not blank, or numbers"


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    @property
    def eos_token_id(self) -> int | None:
        """The end token, which closes every target text."""

    def __call__(self, texts: list[str], /, **options: Any) -> Mapping[str, Any]:
        """Texts -> "input_ids", lists with special tokens; takes truncation and max_length."""


def encode(
    task: Task, rows: Rows, *, tokenizer: Tokenizer | None, form: Form, labelled: bool = True
) -> Examples:
    """The rows of one split as ``Encoded`` token ids, or as ``Pictures``.

    Args:
        task: what to make of a row; a classification task has its labels by now.
        rows: from ``load_split``.
        tokenizer: the backbone's; None for a task of pictures.
        form: what the backbone learns: "head" (a class), "label_words" (to write one), "choice"
            (to choose one) or "text".
        labelled: False to predict on rows without the target column.

    Raises:
        ConfigError: faults of the task, a form that does not fit its kind, label words that
            cannot be told apart or are too long, targets without an end token.
        DataError: missing columns; empty or unusable values, missing pictures and labels outside
            the label words, with their rows.
    """
    _check(task, form)
    check_columns(rows, [*task.source_columns, *([task.target] if labelled else [])])
    if task.picture_column is not None:
        return encode_pictures(task, rows, labelled=labelled)
    assert tokenizer is not None, "texts are read by a tokenizer"
    return _encode_texts(task, rows, tokenizer, form, labelled=labelled)


def _encode_texts(
    task: Task, rows: Rows, tokenizer: Tokenizer, form: Form, *, labelled: bool
) -> Encoded:
    bad = BadRows()
    sources = _read_sources(task, rows, bad)
    classes: list[int] = []
    references: list[Reference] = []
    if labelled and task.kind == "classification":
        classes = read_classes(task, rows, bad)
        references = [task.labels[index] for index in classes]
    elif labelled:
        references = _read_answers(task, rows, bad)
    bad.refuse(num_rows=len(rows))
    input_ids, num_cut = _tokenize(tokenizer, sources, max_length=task.max_source_length)
    has_words = form in WORD_FORMS
    label_ids = encode_label_words(task, tokenizer) if has_words else None
    num_cut_targets = 0
    if not labelled:
        targets = [np.array([IGNORED], dtype=np.int32)] * len(sources)
    elif form == "text":
        targets, num_cut_targets = _encode_answers(task, references, tokenizer)
    elif form in CLASS_FORMS:
        targets = [np.array([index], dtype=np.int32) for index in classes]
    else:
        assert label_ids is not None
        targets = [label_ids[index] for index in classes]
    return Encoded(
        form=form,
        input_ids=input_ids,
        targets=targets,
        classes=np.array(classes, dtype=np.int32) if classes else None,
        references=references,
        label_ids=label_ids,
        num_cut_sources=num_cut,
        num_cut_targets=num_cut_targets,
        unknown={
            what: found
            for what, ids in (
                ("templates", _template_ids(task, tokenizer)),
                ("texts", input_ids),
                ("label words", label_ids or []),
                ("targets", targets if form not in CLASS_FORMS else []),
            )
            if (found := (_num_unknown(tokenizer, ids), len(ids)))[0]
        },
    )


def unknown_words(rows: Examples, split: str) -> list[str]:
    """What the tokenizer does not know of a split, each in a line; nothing where it knows all."""
    return [
        f"{split}: {count:,} of {total:,} {what} have unknown tokens, which the backbone can"
        " neither tell apart nor write"
        for what, (count, total) in rows.unknown.items()
    ]


def _template_ids(task: Task, tokenizer: Tokenizer) -> list[Ids]:
    """The tokens of what stands in the template itself."""
    literal = "".join(text for text, _ in parse_template(task.template))
    return _tokenize(tokenizer, [literal], max_length=MAX_TEMPLATE)[0] if literal.strip() else []


def _num_unknown(tokenizer: Tokenizer, texts: Sequence[Ids]) -> int:
    """Texts with an unknown token; none where that token stands for something else as well, as the
    end in GPT-2, whose tokenizer knows every byte.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    others = (tokenizer.eos_token_id, getattr(tokenizer, "bos_token_id", None))
    if unknown is None or unknown in others:
        return 0
    return sum(bool((ids == unknown).any()) for ids in texts)


def _check(task: Task, form: Form) -> None:
    faults = task.faults()
    if not faults and task.kind not in FORM_KINDS[form]:
        fitting = ", ".join(name for name, kinds in FORM_KINDS.items() if task.kind in kinds)
        faults.append(f"task.kind {task.kind!r} cannot take form {form!r}; allowed: {fitting}")
    if faults:
        raise ConfigError(faults)
    assert task.labels or not task.has_classes, "labels are found before rows are encoded"


def _read_sources(task: Task, rows: Rows, bad: BadRows) -> list[str]:
    columns, pieces = task.source_columns, parse_template(task.template)
    sources = []
    for row, values in enumerate(read_rows(rows, columns)):
        texts = {}
        for column, value in zip(columns, values, strict=True):
            text = value_text(value)
            if text is None:
                bad.add(row, column=column, value=value, allowed=_allowed(column, value))
            texts[column] = text or ""
        sources.append(render(pieces, texts))
    return sources


def _allowed(column: str, value: object) -> str:
    """What may stand in a column of texts instead of this."""
    if isinstance(value, dict) and value:
        return f"{TEXT}; its fields are {', '.join(f'{{{column}.{name}}}' for name in value)}"
    return TEXT


def _read_answers(task: Task, rows: Rows, bad: BadRows) -> list[Reference]:
    references: list[Reference] = []
    for row, (value,) in enumerate(read_rows(rows, [task.target])):
        answers = [value_text(answer) for answer in (value if isinstance(value, list) else [value])]
        right = tuple(answer for answer in answers if answer is not None)
        if not right or len(right) < len(answers):
            bad.add(row, column=task.target, value=value, allowed=f"{TEXT}, or a list of them")
        else:
            references.append(right if isinstance(value, list) else right[0])
    return references


def _encode_answers(
    task: Task, references: Sequence[Reference], tokenizer: Tokenizer
) -> tuple[list[Ids], int]:
    learnt = [text if isinstance(text, str) else text[0] for text in references]
    targets, num_cut = _tokenize(tokenizer, learnt, max_length=task.max_target_length)
    _check_ends(tokenizer, learnt, targets)
    return targets, num_cut


def encode_label_words(task: Task, tokenizer: Tokenizer) -> list[Ids]:
    """Tokens of each label word, end token included.

    Raises:
        ConfigError: words that cannot be told apart or are too long, or no end token.
    """
    label_ids, num_cut = _tokenize(tokenizer, task.labels, max_length=task.max_target_length)
    if num_cut:
        raise ConfigError(
            f"task.max_target_length is {task.max_target_length}, but {num_cut} label words "
            f"of {listed(task.labels)} are longer; allowed: room for all of their tokens"
        )
    _check_ends(tokenizer, task.labels, label_ids)
    words: dict[bytes, str] = {}
    faults = []
    for word, ids in zip(task.labels, label_ids, strict=True):
        first = words.setdefault(ids.tobytes(), word)
        if first != word:
            faults.append(
                f"task.labels {first!r} and {word!r} have the same tokens {ids.tolist()}; "
                "allowed: words that this tokenizer tells apart"
            )
    if faults:
        raise ConfigError(faults)
    return label_ids


def _check_ends(tokenizer: Tokenizer, texts: Sequence[str], targets: list[Ids]) -> None:
    """Generation stops only where training has shown an end."""
    end = tokenizer.eos_token_id
    for text, ids in zip(texts, targets, strict=True):
        if ids[-1] != end:
            raise ConfigError(
                f"the tokenizer ends the target {text[:NUM_CHARS_SHOWN]!r} with token {ids[-1]}; "
                f"allowed: its end token {end}"
            )


def _tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int
) -> tuple[list[Ids], int]:
    """Token ids of each text and the number of texts that were cut to ``max_length``."""
    ids: list[Ids] = []
    num_cut = 0
    for start in range(0, len(texts), NUM_TEXTS_TOKENIZED):
        part = list(texts[start : start + NUM_TEXTS_TOKENIZED])
        # Whole texts first: a cut shows only in the length. verbose=False, since long is fine here.
        whole = list(tokenizer(part, truncation=False, verbose=False)["input_ids"])
        too_long = [index for index, tokens in enumerate(whole) if len(tokens) > max_length]
        if too_long:
            # The tokenizer itself cuts, because it keeps its special tokens at the ends.
            again = [part[index] for index in too_long]
            cut = tokenizer(again, truncation=True, max_length=max_length)["input_ids"]
            for index, tokens in zip(too_long, cut, strict=True):
                whole[index] = tokens
        num_cut += len(too_long)
        ids.extend(np.asarray(tokens, dtype=np.int32) for tokens in whole)
    empty = [index for index, tokens in enumerate(ids) if len(tokens) == 0]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(ids)} texts have no token (row {empty[0]}: "
            f"{texts[empty[0]][:NUM_CHARS_SHOWN]!r}); allowed: text that the tokenizer knows"
        )
    return ids, num_cut
