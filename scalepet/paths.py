"""Paths as people write them: ~ and variables of the environment stand for what they name."""

from __future__ import annotations

import os
import re

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


def expanded(path: str) -> str:
    """The path with ~ and $VARIABLES filled in; what is not set stays as it stands."""
    return os.path.expanduser(os.path.expandvars(path))


def unset_variables(path: str) -> list[str]:
    """The variables in a path that the environment does not have, each once; none in the name of
    what is there.
    """
    names = dict.fromkeys(name or braced for name, braced in _VARIABLE.findall(path))
    unset = [name for name in names if name not in os.environ]
    return [] if unset and os.path.lexists(expanded(path)) else unset
