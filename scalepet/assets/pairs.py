"""Two texts that belong together or not: balanced, so that one text alone tells nothing.

Two true pairs (a, A) and (b, B) make four rows: (a, A) and (b, B) are right, (a, B) and (b, A) are
wrong. Each text so stands in as many right rows as wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalepet.assets.rows import Row, place, write_rows
from scalepet.assets.splits import draw, split, split_note

NUM_ROWS = 4
ANSWERS = {True: "yes", False: "no"}


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together.

    Attributes:
        key: a name of its own; split and order are drawn from it.
        group: pairs meet only others of their group, and a fifth of each group is for testing.
        left, right: columns of the two texts.
    """

    key: str
    group: str
    left: Row
    right: Row


Quad = tuple[Pair, Pair]
Apart = Callable[[Pair, Pair], bool]


def quads(pairs: Iterable[Pair], *, apart: Apart) -> list[Quad]:
    """Each pair with the next one of its group, in drawn order, of which `apart` is true.

    What finds no partner is left out. `apart(one, other)` tells that neither left text belongs to
    the other's right one.
    """
    made: list[Quad] = []
    waiting: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: draw(pair.key)):
        queue = waiting.setdefault(pair.group, [])
        partner = next((other for other in queue if apart(pair, other)), None)
        if partner is None:
            queue.append(pair)
        else:
            queue.remove(partner)
            made.append((partner, pair))
    return made


def write_quads(folder: Path, made: Sequence[Quad], *, group: str) -> str:
    """Columns of both texts, and label (yes, no); the four rows of a quad stand together.

    So a slice of rows whose bounds are multiples of four is balanced, and shares no quad with the
    rows beside it. `group` says what the groups are, for the asset's SOURCE.md.
    """
    parts = split(made, key=_key, stratum=lambda quad: quad[0].group)
    told = write_rows(
        folder,
        {
            name: [row for quad in sorted(part, key=_place) for row in _rows(quad)]
            for name, part in parts.items()
        },
    )
    return f"{split_note(group)} Each {NUM_ROWS} rows are two pairs, right and crossed. {told}"


def _key(quad: Quad) -> str:
    return f"{quad[0].key} {quad[1].key}"


def _place(quad: Quad) -> bytes:
    return place(_key(quad))


def _rows(quad: Quad) -> list[Row]:
    rows = [
        one.left | other.right | {"label": ANSWERS[one is other]} for one in quad for other in quad
    ]
    return sorted(rows, key=lambda row: place(" ".join(row.values())))
