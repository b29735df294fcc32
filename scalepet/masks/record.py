"""What is written down about a mask, and how it is read back with every fault named."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from scalepet.errors import CheckpointError
from scalepet.masks.digest import digest_parts
from scalepet.masks.mask import MaskRule


class MaskRecord(BaseModel):
    """What every saved mask tells of itself."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    rule: MaskRule | None
    count: PositiveInt
    num_eligible: PositiveInt | None
    checksum: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]

    @model_validator(mode="after")
    def _check_counts(self) -> MaskRecord:
        if self.rule and self.rule.count != self.count:
            raise ValueError(f"rule.count is {self.rule.count} but count is {self.count}")
        if self.num_eligible is not None and self.num_eligible < self.count:
            raise ValueError(f"count is {self.count} but num_eligible is {self.num_eligible}")
        return self


class SeededRecord(MaskRecord):
    """A mask to be chosen again by its rule."""

    rule: MaskRule
    num_eligible: PositiveInt


class IndexRecord(MaskRecord):
    """A mask whose positions stand beside the record."""

    shapes: dict[str, tuple[PositiveInt, ...]]


AnyRecord = TypeVar("AnyRecord", bound=MaskRecord)


def validate_record(kind: type[AnyRecord], record: Mapping[str, Any], *, where: str) -> AnyRecord:
    """The record as a model of that kind.

    Raises:
        CheckpointError: with every fault of the record, each after ``where``.
    """
    try:
        # Strict mode takes a mapping for a dataclass and a list for a tuple from JSON only.
        return kind.model_validate_json(json.dumps(record))
    except ValidationError as error:
        faults = [
            f"{where}: {'.'.join(map(str, fault['loc'])) or 'record'}: {fault['msg']}, "
            f"got {reprlib.repr(fault['input'])}"
            for fault in error.errors()
        ]
    except (TypeError, ValueError) as error:
        faults = [f"{where}: not JSON: {error}"]
    raise CheckpointError(faults)


def seal_record(record: Mapping[str, Any]) -> str:
    """The record as JSON with a digest of itself, so that no change to it goes unseen."""
    return json.dumps({**record, "digest": _digest_record(record)})


def unseal_record(text: str) -> dict[str, Any]:
    """The record that seal_record wrote; ValueError when any of it is altered."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("not a mask: the metadata is no JSON object")
    digest = record.pop("digest", None)
    if digest != _digest_record(record):
        raise ValueError(
            f"the metadata is altered: digest {digest} as saved but {_digest_record(record)} here"
        )
    return record


def _digest_record(record: Mapping[str, Any]) -> str:
    return digest_parts([json.dumps(record, sort_keys=True)]).hex()
