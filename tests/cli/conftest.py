from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from scalepet.cli import main


@dataclass(frozen=True)
class Ended:
    """What a command left behind: its exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def faults(self) -> list[str]:
        """The lines of the one message on stderr, without the name of the program."""
        lines = self.err.splitlines()
        assert all(line.startswith("scalepet: ") for line in lines), self.err
        return [line.removeprefix("scalepet: ") for line in lines]


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("train", "run.yaml")``, in this process, as rank 0."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("scalepet.cli.voice.SECONDS_TO_SPEAK", 0.0)

    def run_one(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        written = capsys.readouterr()
        assert "Traceback" not in written.out + written.err
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, written.out, written.err)

    return run_one
