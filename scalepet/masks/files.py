"""Two ways to keep a mask: as its rule, to be chosen again, or as its positions, in a compact file.

A rule takes a few hundred bytes but needs the same eligible tensors; a file of positions stands
alone and is the only way for a mask that no rule can give again. Nothing is pickled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from scalepet.errors import CheckpointError, ConfigError
from scalepet.masks.mask import Indices, SparseMask, find_mask_faults, index_dtype
from scalepet.masks.record import (
    IndexRecord,
    MaskRecord,
    SeededRecord,
    seal_record,
    unseal_record,
    validate_record,
)
from scalepet.masks.select import select_entries
from scalepet.masks.varint import decode_sorted, encode_sorted
from scalepet.reading import check_file

_METADATA_KEY = "scalepet_mask"


def describe(mask: SparseMask) -> dict[str, Any]:
    """What rebuild needs to choose the mask again, JSON-able: rule, count, num_eligible, checksum.

    The mask must come from select_entries; one without a rule is kept by save_indices.
    """
    assert mask.rule is not None and mask.num_eligible is not None, "this mask has no rule"
    return {
        "rule": asdict(mask.rule),
        "count": mask.count,
        "num_eligible": mask.num_eligible,
        "checksum": mask.checksum,
    }


def rebuild(
    record: Mapping[str, Any],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    groups: Mapping[str, str] | None = None,
    tiles: Mapping[str, tuple[int, int]] | None = None,
) -> SparseMask:
    """The mask that describe told of, chosen again and compared.

    Args:
        record: what describe returned, also after a trip through JSON.
        shapes: the eligible tensors, as in select_entries.
        groups: as in select_entries.
        tiles: as in select_entries, made out of the ``unit`` of the record's rule.

    Raises:
        CheckpointError: the record is malformed, or these tensors do not give the saved mask.
    """
    where = "mask record"
    saved = validate_record(SeededRecord, record, where=where)
    rule = saved.rule
    try:
        mask = select_entries(
            shapes,
            budget=rule.budget,
            seed=rule.seed,
            share=rule.share,
            groups=groups,
            tiles=tiles,
            unit=rule.unit,
        )
    except ConfigError as error:
        refused = [f"{where}: not to be chosen from this backbone: {f}" for f in error.faults]
        raise CheckpointError(refused) from error
    faults = _find_differences(mask, saved, fields=("num_eligible", "count", "checksum"))
    if faults:
        allowed = "allowed: the tensor names, shapes and groups (and tiles) of the saved mask"
        raise CheckpointError([f"{where}: {fault}; {allowed}" for fault in faults])
    return mask


def mask_of_positions(
    positions: Mapping[str, Indices],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    num_eligible: int | None = None,
) -> SparseMask:
    """A mask without a rule out of positions that nobody has checked yet, such as a file's.

    Args:
        positions: tensor name to sorted distinct flat row-major indices, of any signed integers;
            tensors without an entry are left out.
        shapes: full shape of each tensor in positions, and of no other.
        num_eligible: entries from which they were chosen, None where nobody knows.

    Raises:
        CheckpointError: they are no mask of these tensors; lists every fault.
    """
    faults = find_mask_faults(positions, shapes)
    count = sum(indices.size for indices in positions.values())
    if num_eligible is not None and num_eligible < count:
        faults.append(f"{count:,} entries but {num_eligible:,} are eligible")
    if faults:
        raise CheckpointError([f"mask: {fault}" for fault in faults])
    return SparseMask(
        positions=_narrow(positions, shapes), shapes=dict(shapes), num_eligible=num_eligible
    )


def save_indices(mask: SparseMask, path: str | os.PathLike[str]) -> None:
    """Writes the positions of a mask as a safetensors file, whole or not at all.

    Each masked tensor becomes one row of bytes (see varint.py) under its own name; shapes, rule and
    checksums are JSON in the metadata. The same mask gives the same bytes.

    Raises:
        CheckpointError: the file cannot be written.
    """
    record = {
        "rule": asdict(mask.rule) if mask.rule else None,
        "count": mask.count,
        "num_eligible": mask.num_eligible,
        "checksum": mask.checksum,
        "shapes": mask.shapes,
    }
    rows = {name: encode_sorted(indices) for name, indices in mask.positions.items()}
    _write_atomically(Path(path), save(rows, metadata={_METADATA_KEY: seal_record(record)}))


def load_indices(path: str | os.PathLike[str]) -> SparseMask:
    """The mask that save_indices wrote.

    Raises:
        CheckpointError: the file is missing, cut short, altered, or not a mask.
    """
    where = f"mask file {os.fspath(path)}"
    try:
        raw, rows = _read_rows(path)
        positions = {name: decode_sorted(row) for name, row in rows.items()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    saved = validate_record(IndexRecord, raw, where=where)
    faults = find_mask_faults(positions, saved.shapes) or _find_count_faults(positions, saved)
    if not faults:
        mask = SparseMask(
            positions=_narrow(positions, saved.shapes),
            shapes=saved.shapes,
            rule=saved.rule,
            num_eligible=saved.num_eligible,
        )
        faults = _find_differences(mask, saved, fields=("checksum",))
    if faults:
        raise CheckpointError([f"{where}: {fault}" for fault in faults])
    return mask


def _find_count_faults(positions: Mapping[str, Indices], saved: MaskRecord) -> list[str]:
    count = sum(indices.size for indices in positions.values())
    return [] if count == saved.count else [f"count is {saved.count} as saved but {count} here"]


def _narrow(
    positions: Mapping[str, Indices], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Indices]:
    return {
        name: indices.astype(index_dtype(math.prod(shapes[name])), copy=False)
        for name, indices in positions.items()
    }


def _find_differences(mask: SparseMask, saved: MaskRecord, *, fields: tuple[str, ...]) -> list[str]:
    return [
        f"{field} is {getattr(saved, field)} as saved but {getattr(mask, field)} here"
        for field in fields
        if getattr(saved, field) != getattr(mask, field)
    ]


def _read_rows(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.uint8]]]:
    """The record and the bytes of each tensor; ValueError where they are no mask."""
    check_file(os.fspath(path))
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if _METADATA_KEY not in metadata:
            raise ValueError(f"not a mask: the metadata has no {_METADATA_KEY!r}")
        rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    wrong = [name for name, row in rows.items() if row.dtype != np.uint8 or row.ndim != 1]
    if wrong:
        raise ValueError(f"not a mask: no row of bytes for {', '.join(wrong)}")
    return unseal_record(metadata[_METADATA_KEY]), rows


def _write_atomically(path: Path, data: bytes) -> None:
    """Replaces path in one step, so that a killed run leaves the old file or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise CheckpointError(f"mask file {path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            draft.unlink()
