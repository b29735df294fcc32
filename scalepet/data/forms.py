"""What a backbone learns of a row: a class or tokens, and what stands where there is nothing."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from scalepet.data.task import Kind

Form = Literal["head", "label_words", "choice", "text"]
FORM_KINDS: dict[Form, tuple[Kind, ...]] = {
    "head": ("classification", "image_classification"),
    "label_words": ("classification",),
    "choice": ("classification",),
    "text": ("sequence_to_sequence",),
}
"""What a target is (a class for a head, a label word to write, a label word to choose, a text), and
the kinds of tasks that it serves."""

CLASS_FORMS: tuple[Form, ...] = ("head", "choice")
"""Whose targets are the numbers of classes; those of the others are tokens."""

WORD_FORMS: tuple[Form, ...] = ("label_words", "choice")
"""Where each class is a word that the backbone writes or scores."""

IGNORED = -100
"""Label of what has no target: padding, fillers, rows without labels."""

Ids = npt.NDArray[np.int32]
RowNumbers = npt.NDArray[np.int64]
