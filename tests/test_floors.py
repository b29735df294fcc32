"""Every import of scalepet goes down the stairs, and every library stays in its home.

A room is a folder or file directly under scalepet/. It may import lower floors only, never a
neighbour on its own floor. Imports are read from the source (also those inside functions, under
``TYPE_CHECKING``, and ``importlib.import_module("...")``), so nothing needs to be importable here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "scalepet"
ROOT = Path(__file__).parents[1] / PACKAGE
MIN_NUM_FILES = 140

FLOORS = {
    PACKAGE: 0,  # scalepet/__init__.py: the version and nothing else
    "errors": 0,
    "exact": 0,
    "paths": 0,
    "reading": 0,
    "signals": 0,
    "files": 1,
    "assets": 2,
    "backbones": 2,
    "data": 2,
    "dist": 2,
    "launch": 2,
    "masks": 2,
    "owned": 2,
    "planning": 2,
    "tracking": 2,
    "engine": 3,
    "pet": 3,
    "lae": 4,
    "config": 5,
    "build": 6,
    "recipes": 7,
    "bench": 8,
    "experiments": 8,
    "cli": 9,
}
SAME_ROOM = {"__main__": "cli", "__init__": PACKAGE}
HOMES = {
    "datasets": "data",
    "deepspeed": "engine",
    "matplotlib": "experiments",
    "transformers": "backbones",
    "wandb": "tracking",
}
VAGUE_WORDS = ("utils", "common", "misc", "helpers", "manager")


class Import(NamedTuple):
    line: int
    module: str


def room_of(module: str) -> str:
    parts = module.split(".")
    room = parts[1] if len(parts) > 1 else PACKAGE
    return SAME_ROOM.get(room, room)


def module_of(path: Path) -> str:
    """``scalepet/pet/__init__.py`` -> ``scalepet.pet.__init__``."""
    return ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts))


def imports_of(source: str, module: str) -> Iterator[Import]:
    """Every module that the source names in an import, with absolute names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, module)
            if base == PACKAGE:  # from scalepet import dist: the room is the imported name
                yield from (Import(node.lineno, f"{base}.{alias.name}") for alias in node.names)
            else:
                yield Import(node.lineno, base)
        elif isinstance(node, ast.Call) and is_import_call(node):
            name = node.args[0]
            assert isinstance(name, ast.Constant), (
                f"{module}:{node.lineno} imports by a computed name"
            )
            yield Import(node.lineno, str(name.value))


def base_of(node: ast.ImportFrom, module: str) -> str:
    if node.level == 0:
        return node.module or ""
    folder = module.split(".")[: -node.level]
    return ".".join(folder + ([node.module] if node.module else []))


def is_import_call(node: ast.Call) -> bool:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else None
    called = node.func.id if isinstance(node.func, ast.Name) else called
    return called in ("import_module", "__import__")


def faults_of(source: str, module: str) -> list[str]:
    """What the source of a module imports against the rules, one line each."""
    room = room_of(module)
    faults = []
    for line, imported in imports_of(source, module):
        library = imported.split(".")[0]
        where = f"{module}:{line} imports {imported}"
        if library in HOMES and HOMES[library] != room:
            faults.append(f"{where}, whose home is {HOMES[library]}/")
        if library != PACKAGE:
            continue
        other = room_of(imported)
        if other == room or imported == f"{PACKAGE}.__version__":
            continue
        if other not in FLOORS:
            faults.append(f"{where}, a room with no floor in {Path(__file__).name}")
        elif FLOORS[other] >= FLOORS[room]:
            faults.append(f"{where}: floor {FLOORS[room]} may not use floor {FLOORS[other]}")
    return faults


def source_files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_no_part_of_the_house_is_out_of_sight() -> None:
    assert len(source_files()) >= MIN_NUM_FILES


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module_of(path)) for path in source_files()}
    assert rooms <= FLOORS.keys(), f"no floor for {sorted(rooms - FLOORS.keys())}"


def test_imports_go_down_and_libraries_stay_at_home() -> None:
    faults = [
        fault
        for path in source_files()
        for fault in faults_of(path.read_text(encoding="utf-8"), module_of(path))
    ]
    assert not faults, "\n".join(faults)


def test_names_say_what_is_inside() -> None:
    paths = [path for path in ROOT.rglob("*") if "__pycache__" not in path.parts]
    vague = [path for path in paths if any(word in path.stem.lower() for word in VAGUE_WORDS)]
    assert not vague, f"name these for what they do: {vague}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("masks.budget", "from scalepet.pet.apet import Apet"),
        ("masks.budget", "from scalepet.data import Task"),
        ("masks.budget", "from scalepet import pet"),
        ("masks.budget", "from ..pet import apet"),
        ("masks.budget", "from .. import engine"),
        (
            "masks.budget",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import scalepet.pet",
        ),
        ("masks.budget", "def f():\n    import scalepet.cli"),
        ("masks.budget", "from scalepet import unknown"),
        ("bench.speed", "from scalepet.experiments.runs import read_run"),
        ("__init__", "from scalepet.errors import ScalepetError"),
        ("pet.apet", "import deepspeed"),
        ("pet.apet", "from transformers.models.t5 import T5Config"),
        ("pet.apet", "import importlib\nimportlib.import_module('wandb.sdk')"),
        ("recipes.finetune", "import matplotlib.pyplot as plt"),
        ("engine.loop", "from datasets import Dataset"),
    ],
)
def test_a_forbidden_import_is_seen(module: str, source: str) -> None:
    assert len(faults_of(source, f"{PACKAGE}.{module}")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("masks.budget", "from scalepet.errors import ConfigError\nfrom .select import uniform"),
        ("masks.__init__", "from .budget import Budget\nfrom scalepet.masks import select"),
        ("pet.apet", "from scalepet import dist, masks\nfrom scalepet.backbones.sites import Site"),
        ("engine.loop", "import deepspeed.comm\nimport torch"),
        ("tracking.wandb", "def start():\n    import wandb"),
        ("__main__", "from scalepet.cli import main"),
        ("recipes.finetune", "from scalepet import __version__"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert faults_of(source, f"{PACKAGE}.{module}") == []
