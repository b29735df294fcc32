from __future__ import annotations

from collections.abc import Callable

import pytest
from running import Ended, run_here

Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("train", "run.yaml")``, in this process, as rank 0."""
    monkeypatch.delenv("RANK", raising=False)

    def run_one(*arguments: str) -> Ended:
        ended = run_here(*arguments)
        assert "Traceback" not in ended.out + ended.err
        return ended

    return run_one
