"""A run whose config holds secrets."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def write_secret_run(tiny_backbones: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """``write_secret_run(folder)``: a run in that folder as YAML. HF_TOKEN is in paths and in
    the name of a project, and a login in an address.
    """

    def write(folder: Path) -> Path:
        token = os.environ["HF_TOKEN"]
        content = {
            "output": str(folder),
            "precision": "fp32",
            "backbone": {"path": str(tiny_backbones / "vit")},
            "task": {
                "kind": "image_classification",
                "source": {
                    "path": "csv",
                    "files": {
                        "train": f"https://someone:very-secret-word@x.org/{token}.csv",
                        "validation": f"a.csv?token={token}",
                    },
                },
                "template": "{picture}",
                "picture": {"size": 16},
                "target": "label",
                "labels": ["a", "b"],
            },
            "method": {"name": "apet", "budget": 100},
            "wandb": {"project": f"with {token} in it"},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write
