"""No command runs what comes from elsewhere: the same attacks for train, continual and sweep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import run_here

pytestmark = pytest.mark.timeout(300)

SCRIPT = "open({witness!r}, 'w')\nfrom transformers import BertConfig as Own\n"


class Evil:
    """What a pickle file may hold: a call of anything."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.witness), "w"))


def pickled_weights(backbone: Path, data: Path, witness: Path) -> str:
    (backbone / "model.safetensors").unlink()
    torch.save({"a.weight": Evil(witness)}, backbone / "pytorch_model.bin")
    return "cannot be loaded"


def code_of_a_backbone(backbone: Path, data: Path, witness: Path) -> str:
    (backbone / "own.py").write_text(SCRIPT.format(witness=str(witness)))
    config = json.loads((backbone / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    (backbone / "config.json").write_text(json.dumps(config))
    return "code of its own"


def code_of_a_tokenizer(backbone: Path, data: Path, witness: Path) -> str:
    (backbone / "own.py").write_text(SCRIPT.format(witness=str(witness)))
    for path in backbone.glob("tokenizer*"):
        path.unlink()
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (backbone / "tokenizer_config.json").write_text(json.dumps(own))
    return "none can be loaded"


def loading_script(backbone: Path, data: Path, witness: Path) -> str:
    (data / f"{data.name}.py").write_text(SCRIPT.format(witness=str(witness)))
    return "is never run"


ATTACKS = (pickled_weights, code_of_a_backbone, code_of_a_tokenizer, loading_script)


@pytest.fixture
def written(
    write_run: Callable[..., Path],
    write_stream: Callable[..., Path],
    study_content: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> Callable[[str, Path, Path], Path]:
    """``written("sweep", backbone, data)``: the file of a command that uses both folders."""

    def write(command: str, backbone: Path, data: Path) -> Path:
        splits = {"eval": "validation[:12]", "test": "validation[12:]"}
        source: dict[str, Any] = {"path": str(data)}
        if command == "sweep":
            content = study_content(tmp_path / "out")
            content["backbones"] = {"tiny": {"path": str(backbone)}}
            for task in content["tasks"].values():
                task["source"] = {**source, "splits": splits}
            path = tmp_path / "sweep.yaml"
            path.write_text(yaml.safe_dump(content))
            return path
        maker = write_run if command == "train" else write_stream
        path = maker(tmp_path / "out", "bert", deepspeed="zero0")
        content = yaml.safe_load(path.read_text())
        content["backbone"]["path"] = str(backbone)
        task = content["task"] if command == "train" else content["stream"]["task"]
        task["source"] = source
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("command", ["train", "continual", "sweep"])
def test_nothing_runs(
    command: str,
    attack: Callable[[Path, Path, Path], str],
    written: Callable[[str, Path, Path], Path],
    backbones_with_tokenizers: Path,
    colour_rows: Path,
    stream_rows: Path,
    tmp_path: Path,
) -> None:
    backbone = Path(shutil.copytree(backbones_with_tokenizers / "bert", tmp_path / "bert"))
    rows = stream_rows if command == "continual" else colour_rows
    data = Path(shutil.copytree(rows, tmp_path / "data"))
    words = attack(backbone, data, tmp_path / "it-ran")
    ended = run_here(command, str(written(command, backbone, data)))
    assert not (tmp_path / "it-ran").exists()
    said = ended.out + ended.err
    assert ended.code != 0 and words in said, ended
    assert "Traceback" not in said
