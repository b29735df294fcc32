from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from scalepet.assets.registry import Package, download, unpack
from scalepet.errors import ConfigError, DataError

WHEEL = "tiny_pack-1.0-py3-none-any.whl"
RAN = "ran.txt"


def write_wheel(folder: Path) -> str:
    """A wheel that pip accepts, for no Python of today; returns its sha256."""
    files = {
        "tiny_pack/data/a.txt": "alpha",
        "tiny_pack/__init__.py": f"open({RAN!r}, 'w')",
        "tiny_pack-1.0.dist-info/METADATA": (
            "Metadata-Version: 2.1\nName: tiny-pack\nVersion: 1.0\nRequires-Python: <3\n"
            "Requires-Dist: no-such-package-anywhere\n"
        ),
        "tiny_pack-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        "tiny_pack-1.0.dist-info/RECORD": "",
    }
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    return hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()


def tiny(sha256: str) -> Package:
    return Package(registry="pypi", name="tiny-pack", version="1.0", archive=WHEEL, sha256=sha256)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that real pip takes for its only index, so that no test reaches a network."""
    shelf = tmp_path / "shelf"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def test_pip_downloads_one_pinned_wheel(shelf: Path, tmp_path: Path) -> None:
    package = tiny(write_wheel(shelf))
    archive = download(package, tmp_path / "cache")
    assert archive == tmp_path / "cache" / WHEEL
    assert archive.read_bytes() == (shelf / WHEEL).read_bytes()
    assert [path.name for path in archive.parent.iterdir()] == [WHEEL]
    assert not list(tmp_path.rglob(RAN))


def test_a_download_is_not_repeated(shelf: Path, tmp_path: Path) -> None:
    package = tiny(write_wheel(shelf))
    first = download(package, tmp_path / "cache")
    (shelf / WHEEL).unlink()
    assert download(package, tmp_path / "cache") == first


def test_a_broken_file_in_the_cache_is_replaced(shelf: Path, tmp_path: Path) -> None:
    package = tiny(write_wheel(shelf))
    download(package, tmp_path / "cache").write_bytes(b"half")
    assert download(package, tmp_path / "cache").read_bytes() == (shelf / WHEEL).read_bytes()


def test_another_archive_than_the_pinned_one_is_refused(shelf: Path, tmp_path: Path) -> None:
    measured = write_wheel(shelf)
    with pytest.raises(DataError) as refused:
        download(tiny("0" * 64), tmp_path / "cache")
    assert measured in str(refused.value)
    assert "0" * 64 in str(refused.value)
    assert not list((tmp_path / "cache").iterdir())


def test_an_unreachable_registry_says_what_to_do(shelf: Path, tmp_path: Path) -> None:
    shelf.mkdir()
    with pytest.raises(ConfigError, match=r"tiny-pack 1\.0: pypi gave no package") as refused:
        download(tiny("0" * 64), tmp_path / "cache")
    assert "No matching distribution found for tiny-pack==1.0" in str(refused.value)
    assert f"put {WHEEL}" in str(refused.value)


def test_a_python_without_pip_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="has no pip"):
        download(tiny("0" * 64), tmp_path)


NPM_PACKAGE = Package(
    registry="npm",
    name="tiny",
    version="2.0.0",
    archive="tiny-2.0.0.tgz",
    sha256=hashlib.sha256(b"tarball").hexdigest(),
)


def put_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_npm_packs_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = '[ "$1" = pack ] && case "$*" in *tiny@2.0.0) printf tarball > tiny-2.0.0.tgz;; esac'
    put_npm(tmp_path, script, monkeypatch)
    assert download(NPM_PACKAGE, tmp_path / "cache").read_bytes() == b"tarball"


def test_what_npm_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_npm(tmp_path, "echo 'npm error ENOTFOUND' >&2; exit 7", monkeypatch)
    with pytest.raises(ConfigError, match=r"exit code 7: npm error ENOTFOUND"):
        download(NPM_PACKAGE, tmp_path / "cache")


def test_a_client_that_brings_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_npm(tmp_path, "printf x > other.tgz", monkeypatch)
    with pytest.raises(DataError, match=r"wanted tiny-2.0.0.tgz, got \['other.tgz'\]"):
        download(NPM_PACKAGE, tmp_path / "cache")


def test_a_machine_without_npm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="npm is not on PATH"):
        download(NPM_PACKAGE, tmp_path / "cache")


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as tarball:
        for name, content in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tarball.addfile(item, io.BytesIO(content))
        link = tarfile.TarInfo("package/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tarball.addfile(link)
    return path


@pytest.mark.parametrize("name", ["a.whl", "a.tgz"])
def test_only_the_named_members_are_unpacked(tmp_path: Path, name: str) -> None:
    files = {"package/in/a.txt": b"a", "../evil.txt": b"evil", "package/b.txt": b"b"}
    into = tmp_path / "deep" / "into"
    into.mkdir(parents=True)
    unpack(write_archive(tmp_path / name, files), ["package/in/a.txt", "../evil.txt"], into)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")}
    assert written == {"deep/into/a.txt", "deep/into/evil.txt"}
    assert (into / "a.txt").read_bytes() == b"a"


@pytest.mark.parametrize("name", ["a.whl", "a.tgz"])
def test_every_missing_member_is_named(tmp_path: Path, name: str) -> None:
    archive = write_archive(tmp_path / name, {"package/a.txt": b"a"})
    wanted = ["package/a.txt", "package/x.txt", "package/link.txt"]
    with pytest.raises(DataError) as refused:
        unpack(archive, wanted, tmp_path)
    assert refused.value.faults == (
        f"{name}: no file package/link.txt",
        f"{name}: no file package/x.txt",
    )
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("name", ["a.whl", "a.tgz"])
def test_a_folder_stands_for_its_files_alone(tmp_path: Path, name: str) -> None:
    files = {"package/in/a.txt": b"a", "package/in/b.txt": b"b", "package/in/deep/c.txt": b"c"}
    into = tmp_path / "into"
    into.mkdir()
    unpack(write_archive(tmp_path / name, files), ["package/in/"], into)
    assert {path.name: path.read_bytes() for path in into.iterdir()} == {
        "a.txt": b"a",
        "b.txt": b"b",
    }


@pytest.mark.parametrize("name", ["a.whl", "a.tgz"])
def test_a_missing_folder_is_named(tmp_path: Path, name: str) -> None:
    archive = write_archive(tmp_path / name, {"package/in/a.txt": b"a"})
    with pytest.raises(DataError, match=f"{name}: no file package/out/"):
        unpack(archive, ["package/in/", "package/out/"], tmp_path)
