"""Keeps keys, tokens and passwords out of everything that is written or sent."""

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
_SECRET_VARIABLE = re.compile(r".*(KEY|TOKEN|SECRET|PASSWORD|PASSWD)", re.IGNORECASE)
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def without_secrets(value: T) -> T:
    """The same value with every secret in it replaced by ``***``.

    Secret is: what stands under a field named like one (``api_key``, ``hf_token``, ``password``),
    the value of an environment variable named like one wherever it occurs, a login inside a URL.

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
        return _LOGIN_IN_URL.sub(HIDDEN, value)
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if item and _is_secret_field(name) else _cleaned(item, secrets)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_cleaned(item, secrets) for item in value]
    return value


def _is_secret_field(name: object) -> bool:
    return isinstance(name, str) and _SECRET_FIELD.fullmatch(name) is not None
