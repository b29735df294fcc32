"""Whether a run may go on from a saved state: what it was begun with must still be the same."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import pydantic

from scalepet.data import Examples
from scalepet.engine import RunState
from scalepet.errors import CheckpointError, ConfigError

T = TypeVar("T")

RECORDS = "metrics"
"""The entry of a fingerprint for what metrics.jsonl held, which is compared with the file."""

Accepted = dict[str, str]
"""What is not as it was and goes on all the same: "was ..., is ..." by name."""


def option_of(name: str) -> str:
    """How ``--accept`` calls an entry of a fingerprint."""
    return name.replace(" ", "-")


def check_names(accept: Sequence[str], acceptable: Sequence[str], *, resume: bool) -> None:
    """
    Raises:
        ConfigError: ``--accept`` of what never goes on when it has changed, or without --resume.
    """
    allowed = [option_of(name) for name in acceptable]
    faults = [
        f"--accept {name}; allowed: {', '.join(allowed)}; all else goes on only as it began"
        for name in accept
        if name not in allowed
    ]
    if accept and not resume:
        faults.append(f"--accept {accept[0]} without --resume, which alone has something to accept")
    if faults:
        raise ConfigError(faults)


def progress_of(kind: type[T], state: RunState, found: Any) -> T:
    """How far a saved run is, in the words of its recipe.

    Args:
        kind: a dataclass.
        found: in the state.

    Raises:
        CheckpointError: it is something else: every fault.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(found)
    except pydantic.ValidationError as error:
        faults = [
            f"{state.folder}: progress.{'.'.join(map(str, fault['loc']))}: {fault['msg']}, not"
            f" {reprlib.repr(fault['input'])}"
            for fault in error.errors()
        ]
    raise CheckpointError(faults)


def check_goes_on(
    state: RunState,
    fingerprint: Mapping[str, Any],
    *,
    accept: Sequence[str],
    acceptable: Sequence[str],
) -> Accepted:
    """What has changed and is accepted.

    Raises:
        CheckpointError: all else that has changed, with both values.
    """
    accepted, faults = {}, []
    theirs = {name: one for name, one in state.fingerprint.items() if name != RECORDS}
    for name in sorted({*theirs, *fingerprint}):
        if theirs.get(name) == fingerprint.get(name):
            continue
        was, now = _differing(theirs.get(name), fingerprint.get(name))
        if option_of(name) in accept:
            accepted[name] = f"was {was!r}, is {now!r}"
            continue
        way_out = f", or with --accept {option_of(name)}" if name in acceptable else ""
        faults.append(
            f"{state.folder}: {name} was {was!r}, this run has {now!r};"
            f" a run goes on as it began{way_out}"
        )
    if faults:
        raise CheckpointError(faults)
    return accepted


def _differing(one: Any, other: Any) -> tuple[Any, Any]:
    """Both values; of two with the same fields, the fields that differ."""
    if not (isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys()):
        return one, other
    names = [name for name in one if one[name] != other[name]]
    return {name: one[name] for name in names}, {name: other[name] for name in names}


def name_of_rows(rows: Examples) -> str:
    """32 hex digits that tell these rows, and the answers that count as right, from others."""
    answers = json.dumps(list(rows.references), default=list)
    return blake2b(f"{rows.fingerprint} {answers}".encode(), digest_size=16).hexdigest()
