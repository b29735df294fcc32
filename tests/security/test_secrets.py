"""A key, a token or a login is in nothing that is written or said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import run_here

from scalepet import build, engine
from scalepet.cli import voice
from scalepet.config import read_config
from scalepet.recipes.adapter import save_adapter
from scalepet.recipes.run_folder import describe_run
from scalepet.recipes.sweep import _note
from scalepet.tracking import JsonlTracker, without_secrets

KEY, TOKEN = "0123456789abcdef0123456789abcdef01234567", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
LOGIN = "someone:very-secret-word"
SECRETS = (KEY, TOKEN, LOGIN, "very-secret-word")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def check_clean(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS), path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wandb.api_key=abcdefgh", "wandb.api_key=***"),
        ("--hf-token=abcdefgh", "--hf-token=***"),
        ("override 'hub.password=abc': no", "override 'hub.password=***': no"),
        ("https://x.org/a.csv?token=abc&rows=3", "https://x.org/a.csv?token=***&rows=3"),
        (f"https://{LOGIN}@x.org/a.csv", "https://***@x.org/a.csv"),
        ("hf_0123456789abcdefgh is it", "*** is it"),
        ("train.learning_rate=1e-3", "train.learning_rate=1e-3"),
        ("task.template=token={word} of it", "task.template=token={word} of it"),
        ("tokens_per_second=3 pad_token_id=0", "tokens_per_second=3 pad_token_id=0"),
        ("sky-blue hf_model", "sky-blue hf_model"),
    ],
)
def test_what_counts_as_a_secret(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


class TestRun:
    """The user has put secrets wherever one can."""

    @pytest.fixture
    def run(self, write_secret_run: Callable[[Path], Path], tmp_path: Path) -> Any:
        return read_config(write_secret_run(tmp_path / "run"))

    def test_run_folder(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        command = ["scalepet", "train", f"wandb.api_key={KEY}", f"a=https://{LOGIN}@x.org/"]
        monkeypatch.setattr("sys.argv", command)
        run.output.mkdir()
        describe_run(run, counts={}, warnings=[f"{TOKEN} is no word"])
        JsonlTracker(run.output / "metrics.jsonl").log(1, {"what": f"bad {TOKEN}"}, kind="skipped")
        _note(run.output / "failed.json", [f"https://{LOGIN}@x.org cannot be read with {KEY}"])
        check_clean(run.output)
        assert "***" in (run.output / "config.yaml").read_text()

    def test_adapter_and_its_card(self, run: Any) -> None:
        task = run.task
        plan = build.plan_run(run, task)
        save_adapter(run.output / "adapter", plan, {}, fixed={}, num_steps=1, metrics={})
        check_clean(run.output)
        _, record = engine.read_folder(run.output / "adapter")
        assert record["config"]["task"]["template"] == run.task.template.replace(TOKEN, "***")


class TestWords:
    def test_of_a_refusal(self) -> None:
        refused = run_here("train", "run.yaml", f"wandb.api_key={KEY}")
        assert refused.code == 2 and KEY not in refused.err
        refused = run_here("train", f"https://{LOGIN}@x.org/run.yaml")
        assert refused.code == 2 and LOGIN not in refused.err

    @pytest.mark.parametrize("speak", ["fail", "refuse"])
    def test_of_a_failure(
        self, speak: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(voice, "end", lambda code: None)
        error = RuntimeError(f"401 for https://{LOGIN}@x.org with {TOKEN} and {KEY}")
        if speak == "fail":
            voice.fail(error)
        else:
            voice.refuse([str(error)])
        said = "".join(capsys.readouterr())
        assert "401 for" in said and not any(secret in said for secret in SECRETS)
