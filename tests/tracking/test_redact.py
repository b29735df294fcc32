from __future__ import annotations

import pytest

from scalepet.tracking import without_secrets


@pytest.mark.parametrize(
    "field",
    ["api_key", "WANDB_API_KEY", "apikey", "token", "hf_token", "auth_token", "password",
     "db_password", "secret", "client_secret", "aws_secret_access_key", "credentials"],
)  # fmt: skip
def test_a_secret_field_is_hidden_at_any_depth(field: str) -> None:
    assert without_secrets({"a": [{field: "hush"}]}) == {"a": [{field: "***"}]}


@pytest.mark.parametrize(
    "field",
    ["pad_token", "eos_token", "tokens_per_second", "max_tokens", "tokenizer", "key_column",
     "num_tokens", "mask_token", "keys"],
)  # fmt: skip
def test_a_field_that_only_sounds_like_one_stays(field: str) -> None:
    assert without_secrets({field: "kept"}) == {field: "kept"}


def test_an_unset_secret_stays_visible_as_unset() -> None:
    assert without_secrets({"api_key": None, "token": ""}) == {"api_key": None, "token": ""}


def test_secrets_of_the_environment_are_hidden_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "abcdefgh")
    monkeypatch.setenv("MY_LONGER_TOKEN", "abcdefghijkl")
    monkeypatch.setenv("SORT_KEY", "id")
    command = "train --data abcdefghijkl --other abcdefgh --column id"
    assert without_secrets(command) == "train --data *** --other *** --column id"


def test_a_login_in_an_address_is_hidden() -> None:
    assert without_secrets("https://me:pass@host/x?a@b") == "https://***@host/x?a@b"
    assert without_secrets("https://host/a@b") == "https://host/a@b"


def test_what_is_no_text_is_left_alone() -> None:
    value = {"steps": 3, "rate": 1e-2, "none": None, "on": True, "list": (1, 2)}
    assert without_secrets(value) == value | {"list": [1, 2]}
