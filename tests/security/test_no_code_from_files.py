"""No file that comes from elsewhere is ever run: no pickle, no remote code, no loading script."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import scalepet
from scalepet import backbones
from scalepet.backbones import Backbone
from scalepet.data.sources import load_split
from scalepet.data.task import Source
from scalepet.errors import ConfigError

SOURCES = sorted(Path(scalepet.__file__).parent.rglob("*.py"))
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNNING = {"eval", "exec", "compile", "__import__"}
FROM_PICKLES = {"torch.load", "np.load", "numpy.load", "pandas.read_pickle", "yaml.unsafe_load"}


def calls_in(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_sources_are_looked_at() -> None:
    assert len(SOURCES) > 150
    assert {"convert.py", "files.py", "states.py"} <= {path.name for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_unpickles_or_runs_text(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert not imported & UNPICKLING
    for name, call in calls_in(path):
        assert name not in RUNNING
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in FROM_PICKLES:
            assert given.get("weights_only") == "True", f"{name} in line {call.lineno}"
        assert given.get("trust_remote_code", "False") == "False"
        assert given.get("shell", "False") == "False"


class Evil:
    """What a pickle file may hold: a call of anything."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.witness), "w"))


@pytest.fixture
def copy_of_bert(tiny_backbones: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_backbones / "bert", tmp_path / "bert"))


def change_json(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields}))


def test_weights_in_a_pickle_file_are_read_without_running_it(
    copy_of_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = tmp_path / "it-ran"
    (copy_of_bert / "model.safetensors").unlink()
    torch.save({"a.weight": Evil(witness)}, copy_of_bert / "pytorch_model.bin")
    module = importlib.import_module("scalepet.backbones.convert")
    monkeypatch.setattr(module, "HF_HOME", str(tmp_path / "home"))
    backbone = Backbone(str(copy_of_bert), num_classes=2)
    config = backbones.read_model_config(backbone)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        backbones.convert(backbone, config)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        backbones.load_model(backbone, config, dtype=torch.float32)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Evil(witness)))
    assert witness.exists(), "it would have run"


SCRIPT = "open({witness!r}, 'w')\nfrom transformers import BertConfig as Own\n"


@pytest.mark.parametrize("model_type", ["bert", "own"])
def test_a_backbone_with_its_own_code_is_refused(
    model_type: str, copy_of_bert: Path, tmp_path: Path
) -> None:
    """Also where a family's name would let it through as another model than it is."""
    (copy_of_bert / "own.py").write_text(SCRIPT.format(witness=str(tmp_path / "it-ran")))
    auto_map = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    change_json(copy_of_bert / "config.json", auto_map=auto_map, model_type=model_type)
    with pytest.raises(ConfigError, match="code of its own.*never run.*allowed") as refused:
        backbones.read_model_config(Backbone(str(copy_of_bert), num_classes=2))
    assert "trust_remote_code" not in str(refused.value)
    assert not (tmp_path / "it-ran").exists()


def test_a_tokenizer_with_its_own_code_is_refused(copy_of_bert: Path, tmp_path: Path) -> None:
    (copy_of_bert / "own.py").write_text(SCRIPT.format(witness=str(tmp_path / "it-ran")))
    for path in copy_of_bert.glob("tokenizer*"):
        path.unlink()
    change_json(
        copy_of_bert / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own.Own", None]},
        tokenizer_class="Own",
    )
    with pytest.raises(ConfigError, match="none can be loaded.*allowed"):
        backbones.load_tokenizer(Backbone(str(copy_of_bert)))
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("beside", [(), ("train.csv",)], ids=["alone", "beside data"])
def test_a_data_set_with_a_loading_script_is_refused(
    beside: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(SCRIPT.format(witness=str(tmp_path / "it-ran")))
    for name in beside:
        (folder / name).write_text("text,label\na,b\n")
    with pytest.raises(ConfigError, match=r"own\.py.*allowed"):
        load_split(Source(str(folder)), "train")
    assert not (tmp_path / "it-ran").exists()
