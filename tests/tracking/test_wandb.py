"""WandbTracker on the real wandb, offline: nothing here opens a connection."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scalepet.tracking import WandbTracker
from scalepet.tracking.wandb import _usable_mode

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "NETRC"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")


def start(folder: Path, **changes: Any) -> WandbTracker:
    choices = {"project": "p", "name": "n", "mode": "offline", "config": {}} | changes
    return WandbTracker(folder, **choices)


def written(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def test_an_offline_run_is_written_and_its_id_survives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    for first_step in (1, 3):
        tracker = start(folder, config={"method": {"name": "apet-config-value"}})
        tracker.log(first_step, {"loss": 0.5}, kind="train")
        tracker.log(first_step, {"eval/accuracy": 0.75}, kind="eval")
        tracker.log(first_step + 1, {"loss": 0.25}, kind="train")
        tracker.close()
    run_id = (folder / "wandb_id").read_text().strip()
    names = {path.name for path in folder.glob("wandb/offline-run-*/*.wandb")}
    assert names == {f"run-{run_id}.wandb"}
    for content in written(folder):
        for part in (b"train/loss", b"eval/accuracy", b"apet-config-value", run_id.encode()):
            assert part in content
    assert not [record for record in caplog.records if record.name.startswith("scalepet")]


def test_a_picture_goes_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "matrix.png"
    Image.new("RGB", (4, 3), "red").save(path)
    tracker = start(tmp_path / "run")
    tracker.log(5, {"loss": 0.5}, kind="train")
    tracker.picture(5, "stream/matrix", path)
    path.unlink()  # what was sent is a copy
    tracker.log(6, {"loss": 0.5}, kind="train")
    tracker.close()
    (sent,) = (tmp_path / "run").glob(
        "wandb/offline-run-*/files/media/images/stream/matrix_5_*.png"
    )
    assert Image.open(sent).size == (4, 3)
    (content,) = written(tmp_path / "run")
    assert b"image-file" in content and sent.name.encode() in content
    assert not [record for record in caplog.records if record.name.startswith("scalepet")]


def test_a_picture_that_cannot_be_read_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(tmp_path)
    with caplog.at_level(logging.WARNING, logger="scalepet"):
        tracker.picture(1, "stream/matrix", tmp_path / "nowhere.png")
        tracker.picture(2, "stream/matrix", tmp_path / "nowhere.png")
        tracker.close()
    assert len([record for record in caplog.records if record.name.startswith("scalepet")]) == 1
    assert "wandb is off" in caplog.text


def test_a_given_id_is_kept(tmp_path: Path) -> None:
    start(tmp_path, run_id="chosen01").close()
    start(tmp_path).close()
    assert (tmp_path / "wandb_id").read_text() == "chosen01\n"
    assert list(tmp_path.glob("wandb/offline-run-*-chosen01"))


def test_no_secret_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_environment")
    monkeypatch.setattr("sys.argv", ["scalepet", "--key=of_command_line"])
    tracker = start(tmp_path, config={"hub": {"token": "of_config"}, "url": "https://me:of_url@h"})
    tracker.log(1, {"note": "hf_of_environment"}, kind="train")
    tracker.close()
    assert written(tmp_path)
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        for secret in (b"hf_of_environment", b"of_command_line", b"of_config", b"of_url"):
            assert secret not in path.read_bytes(), path


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_wandb_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    class FailingRun:
        def log(self, *_: object, **__: object) -> None:
            if where == "log":
                raise OSError("no space, says abcdefghij")

        def finish(self) -> None:
            raise RuntimeError("service is gone, says abcdefghij")

    def init(**_: object) -> FailingRun:
        if where == "init":
            raise wandb.errors.CommError("no route, says abcdefghij")
        return FailingRun()

    monkeypatch.setenv("WANDB_API_KEY", "abcdefghij")
    monkeypatch.setattr(wandb, "init", init)
    with caplog.at_level(logging.WARNING):
        tracker = start(tmp_path)
        tracker.log(1, {"loss": 1.0}, kind="train")
        tracker.log(2, {"loss": 1.0}, kind="train")
        tracker.close()
    assert len(caplog.records) == 1
    assert "wandb is off" in caplog.text and "abcdefghij" not in caplog.text


def test_no_key_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    assert _usable_mode("online") == "offline"
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    assert _usable_mode("online") == "online"
    assert _usable_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert _usable_mode("online") == "disabled"


def test_the_real_wandb_finds_no_key_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    wandb.teardown()  # its settings are read from the environment once
    assert _usable_mode("online") == "offline"
