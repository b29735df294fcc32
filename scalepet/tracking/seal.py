"""A seal over the files of a finished run: whoever reads them knows that they are as written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from scalepet.errors import DataError
from scalepet.files import replace_file
from scalepet.reading import open_file, parse_json, read_text

SEAL = "seal.json"


def seal(folder: Path, names: Sequence[str], *, workplace: Path | None = None) -> None:
    """Write the digest of each of these files that is there into seal.json, the last thing that a
    run writes.

    Args:
        workplace: as for ``replace_file``.

    Raises:
        CheckpointError: it cannot be written.
    """
    digests = {name: _digest(folder / name) for name in names if (folder / name).exists()}
    replace_file(folder / SEAL, json.dumps(digests, indent=2) + "\n", workplace=workplace)


def check_seal(folder: Path) -> None:
    """Returns where every sealed file is as it was sealed.

    Raises:
        DataError: every file that is not, or that there is no seal.
    """
    try:
        digests = parse_json(read_text(folder / SEAL))
        outside = [name for name in digests if name == ".." or Path(name).name != name]
        if outside:
            raise ValueError(f"it names {outside[0]!r}, which is no file of the run")
        faults = [
            f"{folder / name}: {'changed after the run had ended' if there else 'missing'}"
            for name, digest in digests.items()
            if not (there := (folder / name).exists()) or _digest(folder / name) != digest
        ]
    except FileNotFoundError as error:
        raise DataError(f"{folder / SEAL}: missing; the run has not ended") from error
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / SEAL}: cannot be read: {error}") from error
    if faults:
        raise DataError(faults)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open_file(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
