"""What every refusal has in common."""

from __future__ import annotations

from running import Ended


def check_refused(ended: Ended, *, why: str, names: str) -> None:
    """One message on stderr that names what is bad, exit code 2 and nothing else."""
    said = ended.out + ended.err
    assert ended.code != 0, f"it was taken, and is bad: {why}"
    assert "Traceback" not in said, said
    assert (ended.code, ended.out) == (2, ""), said
    assert any(names in fault for fault in ended.faults), f"{ended.faults} do not name {names}"
