"""A key, a token or a login is in nothing that is written or said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import run_here

from scalepet import build, engine
from scalepet.cli import voice
from scalepet.config import read_config
from scalepet.recipes.adapter import open_adapter, save_adapter
from scalepet.recipes.adapter_tensors import trained_shapes
from scalepet.recipes.run_folder import describe_run
from scalepet.recipes.sweep import _note
from scalepet.tracking import JsonlTracker, credential_in, without_secrets

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


FIELDS = {
    "task.source.files.train": "a login in an address",
    "task.source.files.validation": "a token",
    "task.source.files.test": "a key in an address",
    "wandb.project": "a token",
}


def test_a_config_with_credentials_is_refused_and_does_not_show_them(
    write_secret_run: Callable[[Path], Path], tmp_path: Path
) -> None:
    ended = run_here("train", str(write_secret_run(tmp_path / "run")))
    assert ended.code == 2
    assert not any(secret in ended.err for secret in SECRETS)
    for field, kind in FIELDS.items():
        assert f"{field}: holds {kind}, which" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("path", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz", "a token"),
        ("api_key", "0123456789", "a key"),
        ("hf_token", "0123456789", "a key"),
        ("train", "s3://me:word@bucket/rows.csv", "a login in an address"),
        ("train", "https://x.org/a?token=abc", "a key in an address"),
        ("template", "token=red wall {text}", None),
        ("template", "https://{text}@sky", None),
        ("template", "https://{user}:{word}@sky", None),
        ("template", "ask: me@home or you: there", None),
        ("path", "hf_model", None),
        ("pad_token", "[PAD]", None),
        ("api_key", "", None),
    ],
)
def test_what_a_config_may_not_hold(name: str, value: str, kind: str | None) -> None:
    assert credential_in(name, value) == kind


class TestWhatIsKept:
    """A config and a record are as they were given, whatever the environment calls a secret."""

    TEMPLATES = ("the wall is {text}", "token=red wall {text}", "https://{text}@sky")

    @pytest.mark.parametrize("template", TEMPLATES)
    def test_template(
        self, template: str, write_plain_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SORT_KEY", "the wall is")
        run = read_config(write_plain_run(tmp_path / "run", template=template))
        run.output.mkdir()
        describe_run(run, counts={})
        assert yaml.safe_load((run.output / "config.yaml").read_text())["task"]["template"] == (
            template
        )
        plan = build.plan_run(run, run.task)
        shapes = trained_shapes(plan, plan.method, ())
        tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
        save_adapter(run.output / "adapter", plan, tensors, fixed={}, num_steps=1, metrics={})
        _, record = engine.read_folder(run.output / "adapter")
        assert record["config"]["task"]["template"] == template
        assert open_adapter(run.output, overrides={}).plan.task.template == template

    def test_what_is_shown_of_it_is_redacted(
        self, write_plain_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = ["scalepet", "train", f"wandb.api_key={KEY}", f"a=https://{LOGIN}@x.org/"]
        monkeypatch.setattr("sys.argv", command)
        run = read_config(write_plain_run(tmp_path / "run", template="{text}"))
        run.output.mkdir()
        describe_run(run, counts={})
        JsonlTracker(run.output / "metrics.jsonl").log(1, {"what": f"bad {TOKEN}"}, kind="skipped")
        _note(run.output / "failed.json", [f"https://{LOGIN}@x.org cannot be read with {KEY}"])
        check_clean(run.output)


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *[(name, True) for name in ("DB_PASS", "GIT_PAT", "DB_PWD", "AWS_CREDENTIALS")],
        *[(name, True) for name in ("AZURE_CONNECTION_STRING", "SENTRY_DSN", "MY_API_KEY")],
        *[(name, False) for name in ("PWD", "OLDPWD", "BYPASS", "PATH", "COMPAT", "KEYBOARD")],
    ],
)
def test_which_variables_hold_secrets(
    name: str, is_secret: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "the-value-of-it")
    assert (without_secrets("is the-value-of-it") == "is ***") is is_secret


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
