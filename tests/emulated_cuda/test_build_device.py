"""The device is built where it can be, and whoever cannot build it is told so once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from emulated_cuda import build


def test_without_a_compiler_there_is_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        build.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == ""
    assert err.startswith("scalepet: g++ is not found") and err.count("\n") == 1


def test_a_cuda_build_of_torch_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    build.main()
    assert capsys.readouterr() == ("", "") and not [*tmp_path.iterdir()]


def test_what_is_built_is_not_built_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_nothing(library: Path, torch: Path) -> None:
        print("compiled")
        library.touch()

    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(build, "build", compile_nothing)
    build.main()
    first = capsys.readouterr().out.split()
    build.main()
    assert first[0] == "compiled" and capsys.readouterr().out.split() == first[1:]
