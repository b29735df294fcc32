"""WandbTracker on the real wandb, offline: nothing here opens a connection."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from wandb_server import WandbServer, serving

from scalepet.tracking import WandbTracker, open_trackers
from scalepet.tracking.wandb import _usable_mode
from scalepet.tracking.wandb_files import read_history

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


def rows(folder: Path) -> list[dict[str, Any]]:
    """The history of the folder's run, without wandb's own fields."""
    run_id = (folder / "wandb_id").read_text().strip()
    written(folder)
    return [
        {name: value for name, value in row.items() if not name.startswith("_")}
        for row in read_history(folder, run_id)
    ]


def written(folder: Path) -> list[bytes]:
    """What is in the files of the parts; on a busy machine wandb's own process writes the last one
    a little later than it says.
    """
    paths = sorted(folder.glob("wandb/*run-*/*.wandb"))
    deadline = time.monotonic() + 30
    while any(path.stat().st_size < 100 for path in paths[-1:]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [path.read_bytes() for path in paths]


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
    tracker.picture(5, "matrix", path)
    path.unlink()  # what was sent is a copy
    tracker.log(6, {"loss": 0.5}, kind="train")
    tracker.close()
    (sent,) = (tmp_path / "run").glob(
        "wandb/offline-run-*/files/media/images/pictures/matrix_1_*.png"
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
        tracker.picture(1, "matrix", tmp_path / "nowhere.png")
        tracker.picture(2, "matrix", tmp_path / "nowhere.png")
        tracker.close()
    assert len([record for record in caplog.records if record.name.startswith("scalepet")]) == 1
    assert "wandb is off" in caplog.text


def test_a_given_id_is_kept(tmp_path: Path) -> None:
    start(tmp_path, run_id="chosen01").close()
    start(tmp_path).close()
    assert (tmp_path / "wandb_id").read_text() == "chosen01\n"
    assert list(tmp_path.glob("wandb/offline-run-*-chosen01"))


def test_a_run_of_a_sweep_has_the_id_of_its_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agents01")
    start(tmp_path / "alone").close()
    assert (tmp_path / "alone" / "wandb_id").read_text() != "agents01\n"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep001")
    start(tmp_path / "run").close()
    assert (tmp_path / "run" / "wandb_id").read_text() == "agents01\n"
    assert list(tmp_path.glob("run/wandb/offline-run-*-agents01"))


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


def start_run(folder: Path, *, steps: range, last_step: int = -1) -> Any:
    """A run that goes on behind ``last_step`` and evaluates every other step, and its trackers."""
    trackers = open_trackers(folder, last_step=last_step, wandb_project="p", mode="offline")
    for step in steps:
        trackers.log(step, {"loss": 1 / step}, kind="train")
        if step % 2 == 0:
            trackers.log(step, {"eval/accuracy": step / 10}, kind="eval")
    return trackers


def check_whole(found: list[dict[str, Any]], num_steps: int) -> None:
    """Each step once, in order, and nothing else."""
    train = [row for row in found if "train/step" in row]
    assert train == [
        {"train/step": step, "train/loss": 1 / step} for step in range(1, num_steps + 1)
    ]
    evaluations = [row for row in found if "eval/step" in row]
    assert evaluations == [
        {"eval/step": step, "eval/accuracy": step / 10} for step in range(2, num_steps + 1, 2)
    ]
    assert len(found) == len(train) + len(evaluations)


def test_steps_that_are_made_again_stand_there_once(tmp_path: Path) -> None:
    """A run that was killed goes on from its last saved state, and is killed again before it is as
    far as it was.
    """
    start_run(tmp_path, steps=range(1, 8)).close()
    start_run(tmp_path, steps=range(5, 7), last_step=4).close()
    start_run(tmp_path, steps=range(5, 11), last_step=4).close()
    check_whole(rows(tmp_path), 10)
    names = {path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert len(names) == 1


def test_what_wandb_has_lost_is_sent_again(tmp_path: Path) -> None:
    """Its own process is ended by the signals that end a job, and takes its last rows along."""
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    ended = subprocess.run(
        [sys.executable, __file__, tmp_path],
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr.count("wandb is off until this run is resumed") == 1, ended.stderr
    assert len(rows(tmp_path)) < 8 + 4
    start_run(tmp_path, steps=range(9, 11), last_step=8).close()
    check_whole(rows(tmp_path), 10)


def lose_wandb(folder: Path) -> None:
    """Eight steps of a run whose wandb process is ended after the seventh."""
    trackers = start_run(folder, steps=range(1, 8))
    (core,) = (one for one in psutil.Process().children() if one.name() == "wandb-core")
    core.terminate()
    core.wait(10)
    trackers.log(8, {"loss": 1 / 8}, kind="train")
    trackers.log(8, {"eval/accuracy": 8 / 10}, kind="eval")
    trackers.close()


def test_a_run_that_comes_to_wandb_late_is_whole(tmp_path: Path) -> None:
    with open_trackers(tmp_path) as trackers:
        trackers.log(1, {"loss": 1.0}, kind="train")
        trackers.log(2, {"loss": 0.5}, kind="train")
        trackers.log(2, {"eval/accuracy": 0.2}, kind="eval")
    start_run(tmp_path, steps=range(3, 5), last_step=2).close()
    check_whole(rows(tmp_path), 4)


def test_online_the_server_knows_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        wandb.teardown()  # its settings are read from the environment once
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_MODE", "online")
        start_run(tmp_path, steps=range(1, 8)).close()
        start_run(tmp_path, steps=range(5, 11), last_step=4).close()
        wandb.teardown()
    (run_id,) = server.runs
    assert run_id == (tmp_path / "wandb_id").read_text().strip()
    check_server(server)


def test_a_network_that_is_gone_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalepet.tracking.wandb.SECONDS_TO_FINISH", 1.0)
    with serving() as server:
        wandb.teardown()  # its settings are read from the environment once
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_MODE", "online")
        trackers = start_run(tmp_path, steps=range(1, 3))
    started = time.monotonic()
    trackers.close()
    assert time.monotonic() - started < 20
    check_whole(rows(tmp_path), 2)


def test_wandb_sync_makes_one_run_of_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_run(tmp_path, steps=range(1, 8)).close()
    start_run(tmp_path, steps=range(5, 11), last_step=4).close()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE")
    parts = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert len(parts) == 2
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        sync = [sys.executable, "-m", "wandb", "sync", "--yes", *parts]
        subprocess.run(sync, check=True, capture_output=True, timeout=60)
    assert len(server.runs) == 1
    check_server(server)


def check_server(server: WandbServer) -> None:
    assert [row["_step"] for row in server.rows] == list(range(15))
    check_whole(
        [{n: v for n, v in row.items() if not n.startswith("_")} for row in server.rows], 10
    )
    (run,) = server.runs.values()
    metrics = json.loads(run["config"])["_wandb"]["value"]["m"]
    axes = {one["2"]: metrics[one["5"] - 1]["1"] for one in metrics if "2" in one}
    assert axes == {"train/*": "train/step", "eval/*": "eval/step"}


def test_a_result_a_table_and_an_adapter_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scalepet.tracking.wandb.MAX_KEPT_BYTES", 5)
    for name, text in (("adapter", "small"), ("adapter-offline", "larger")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensors").write_text(text)
    tracker = start(tmp_path)
    tracker.conclude({"accuracy": 0.123, "note": "best"})
    tracker.table("accuracies", ["expert", "accuracy"], [["online", 0.25], ["offline", 0.5]])
    tracker.keep(tmp_path / "adapter")
    with caplog.at_level(logging.WARNING, logger="scalepet"):
        tracker.keep(tmp_path / "adapter-offline")
    tracker.close()
    assert "too many for wandb" in caplog.text and "wandb is off" not in caplog.text
    (content,) = written(tmp_path)
    run_id = (tmp_path / "wandb_id").read_text().strip().encode()
    for part in (b"result/accuracy", b"0.123", b"%s-adapter" % run_id, b"accuracies"):
        assert part in content
    assert str(tmp_path / "adapter" / "tensors").encode() in content
    assert b"%s-adapter-offline" % run_id not in content
    # All that `wandb sync` needs lies in the run folder.
    assert list(tmp_path.glob("wandb/artifacts/staging/*"))
    assert not list((tmp_path / "home").rglob("staging/*"))


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


if __name__ == "__main__":
    lose_wandb(Path(sys.argv[1]))
    os._exit(0)  # as a run ends: wandb's own last words would be about the process that it misses
