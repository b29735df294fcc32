"""Keeps keys, tokens and passwords out of everything that is shown, logged or sent.

A config is kept as it is given, since its run is repeated and its adapter is read back by it. So it
may hold no credential in the first place: ``credential_in`` says which it does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

HIDDEN = "***"
MIN_SECRET_LENGTH = 8  # a shorter value of a variable named like a secret is a switch or a word

# Whole names of fields: "pad_token" and "tokens_per_second" say nothing secret.
_SECRET_FIELD = re.compile(
    r"(.*_)?(api_?key|access_?key|private_?key|secret|password|passwd|credentials?)"
    r"|((auth|access|api|bearer|hf|hub|wandb)_)?token",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(
    r".*(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|CONNECTION_?STRING|_(PASS|PAT|PWD|DSN))",
    re.IGNORECASE,
)
_LOGIN_IN_URL = re.compile(r"(?<=:/)(/?)[^/\s@]+(?=@)")  # a path knows of one slash only
_GIVEN = re.compile(r"(?<![\w.-])(?P<name>[\w.-]+)=(?!\{)[^\s&\"']+")
"""A value behind its name in a text: an override, an option, a query in a URL; no template's
column.
"""

_KNOWN_SHAPE = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}")
"""Tokens of the hub, OpenAI, GitHub and GitLab, wherever they come from."""


_LOGIN = re.compile(r"://[^/\s:@{}]+:[^/\s@{}]+@")
_KEY_IN_URL = re.compile(r"://\S*[?&](?P<name>[\w-]+)=(?!\{)[^\s&]+")


def credential_in(name: str, value: str) -> str | None:
    """What kind of credential a field holds, as far as its shape shows; None where it holds none.

    Args:
        name: of the field alone.
    """
    if _KNOWN_SHAPE.search(value):
        return "a token"
    if _LOGIN.search(value):
        return "a login in an address"
    if (given := _KEY_IN_URL.search(value)) and _is_secret_field(given["name"]):
        return "a key in an address"
    return "a key" if value and _is_secret_field(name) else None


def without_secrets(value: T) -> T:
    """The same value with every secret in it replaced by ``***``.

    Secret is: what stands under a field named like one (``api_key``, ``hf_token``, ``password``) or
    behind such a name in a text (``wandb.api_key=...``, ``?token=...``), the value of an
    environment variable named like one wherever it occurs, a login inside a URL, a token that
    shows what it is.

    Args:
        value: text, a number, or mappings and sequences of these at any depth; left as it is.
    """
    return _cleaned(value, _secrets_of_environment())  # type: ignore[return-value]


def _secrets_of_environment() -> list[str]:
    secrets = {
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.fullmatch(name) and len(value) >= MIN_SECRET_LENGTH
    }
    # Longest first: one secret may be the beginning of another.
    return sorted(secrets, key=lambda secret: (-len(secret), secret))


def _cleaned(value: object, secrets: list[str]) -> object:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        value = _GIVEN.sub(_hidden, _LOGIN_IN_URL.sub(rf"\1{HIDDEN}", value))
        return _KNOWN_SHAPE.sub(HIDDEN, value)
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if item and _is_secret_field(name) else _cleaned(item, secrets)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_cleaned(item, secrets) for item in value]
    return value


def _hidden(given: re.Match[str]) -> str:
    name = given["name"].rpartition(".")[2].lstrip("-").replace("-", "_")
    return f"{given['name']}={HIDDEN}" if _is_secret_field(name) else given[0]


def _is_secret_field(name: object) -> bool:
    return isinstance(name, str) and _SECRET_FIELD.fullmatch(name) is not None
