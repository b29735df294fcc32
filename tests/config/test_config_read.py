from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scalepet.config import check_config, read_config, read_overrides
from scalepet.config.loader import parse_yaml
from scalepet.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_file_is_read(file: Path, content: dict[str, Any]) -> None:
    assert read_config(file) == check_config(content)


def test_overrides_reach_every_depth(file: Path) -> None:
    config = read_config(
        file,
        [
            "train.learning_rate=3e-3",
            "train.steps=100",
            "task.source.files.train=other.csv",
            "task.labels=[good, bad]",
            "deepspeed={zero_optimization: {stage: 2}}",
            "method.budget=0.1%",
            "backbone.revision=a=b",
        ],
    )
    assert config.train.learning_rate == 3e-3
    assert config.train.steps == 100
    assert config.task.source.files == {"train": "other.csv", "validation": "held_out.csv"}
    assert config.task.labels == ("good", "bad")
    assert config.deepspeed == {"zero_optimization": {"stage": 2}}
    assert config.method.options == {"budget": "0.1%"}
    assert config.backbone.revision == "a=b"


def test_a_whole_section_is_replaced_and_an_empty_one_filled(file: Path) -> None:
    assert read_config(file, ["method={name: head}"]).method.options == {}
    file.write_text(file.read_text() + "train:\n")
    assert read_config(file, ["train.steps=3"]).train.steps == 3


def test_what_an_anchor_shares_is_overridden_in_one_place_alone(
    file: Path, content: dict[str, Any]
) -> None:
    content["evaluate"] = content["train"] = {"micro_batch_size": 4}
    file.write_text(yaml.dump(content))
    assert "&id" in file.read_text()
    config = read_config(file, ["train.micro_batch_size=2"])
    assert (config.train.micro_batch_size, config.evaluate.micro_batch_size) == (2, 4)


def test_overrides_alone_are_nested() -> None:
    assert read_overrides([]) == {}
    assert read_overrides(["a.b=1", "a.c=[x]", "a.b=2", "d="]) == {
        "a": {"b": 2, "c": ["x"]},
        "d": None,
    }


BAD_OVERRIDES = ["steps", "=3", "train.=3", "train..steps=3", "a={", "output.x=1", ".=1", ""]


def test_every_bad_override_is_named_with_the_faults_of_the_file(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(file, [*BAD_OVERRIDES, "train.steps=0", "precision=fp32"])
    faults = caught.value.faults
    assert len(faults) == len(BAD_OVERRIDES) + 1
    for text, fault in zip(BAD_OVERRIDES, faults, strict=False):
        assert fault.startswith(f"override {text!r}: ")
        assert "allowed: FIELD=VALUE" in fault
    assert faults[-1].startswith("train.steps: 0; ")


def test_every_bad_override_alone_is_named() -> None:
    bad = [text for text in BAD_OVERRIDES if not text.startswith("output")]
    with pytest.raises(ConfigError) as caught:
        read_overrides([*bad, "train.steps=0"])
    assert len(caught.value.faults) == len(bad)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+2", -250.0),
        ("3", 3),
        ("-3", -3),
        ("20_000", 20000),
        ("0.06", 0.06),
        (".5", 0.5),
        ("1.", 1.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("007", "007"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("0x1f", "0x1f"),
        ("0.1%", "0.1%"),
        ("e5", "e5"),
        ("-", ["-"]),
        ("1.2.3", "1.2.3"),
        ("'3'", "3"),
        ("train[:3000]", "train[:3000]"),
        ("[a, 1]", ["a", 1]),
    ],
)
def test_values_are_what_people_mean(text: str, value: Any) -> None:
    if text == "-":
        text, value = "[-]", ["-"]
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_merge_keys_work() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}"
    assert parse_yaml(text)["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"a stands twice \(line 1, column 1\)"),
        ("a: {b: 1, c: 2, b: 3, c: 4}", "b, c stands twice"),
        ("a: [1", r"line \d+, column \d+"),
        ("a: b: c", "mapping values"),
        ("\ta: 1", "found character"),
        ("a: *b", "undefined alias"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: &a [*a]", "[Cc]ircular"),
        ("[" * 5000, "nested too deep"),
        ("{[1]: 2}", "unhashable"),
        ("a: 1\n---\nb: 2", "single document"),
        ("\x00", "special characters"),
        ("9" * 5000, "digits"),
    ],
)
def test_what_is_no_yaml_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml cannot be read .No such file"):
        read_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read .Is a directory"):
        read_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="bytes.yaml is no YAML: .*decode"):
        read_config(tmp_path / "bytes.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="empty.yaml holds nothing; allowed: fields"):
        read_config(tmp_path / "empty.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"list.yaml holds \[1, 2\]; allowed: fields"):
        read_config(tmp_path / "list.yaml")
