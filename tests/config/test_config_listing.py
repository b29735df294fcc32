from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Gt

from scalepet.config import (
    RunConfig,
    StreamConfig,
    check_config,
    check_stream_config,
    fields_as_yaml,
    plain,
)
from scalepet.config.fields import NEEDED, documented, fields_of, walk
from scalepet.config.loader import parse_yaml
from scalepet.config.words import shown, words_of
from scalepet.data import Picture, Source, Task
from scalepet.pet import METHODS

LISTING = fields_as_yaml()


def comment_of(name: str) -> str:
    """The comment beside a field, its lines joined."""
    lines = LISTING.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
    comments = [lines[start].partition(" # ")[2]]
    for line in lines[start + 1 :]:
        if not line.strip().startswith("# ") or not line.startswith(" " * 30):
            break
        comments.append(line.strip()[2:])
    return " ".join(comments).strip()


def test_the_listing_is_a_config_that_holds_every_field_and_its_default() -> None:
    content = parse_yaml(LISTING)
    config = check_config(content)
    needed = {
        "output": content["output"],
        "backbone": {"path": content["backbone"]["path"]},
        "task": {name: content["task"][name] for name in ("kind", "source", "template", "target")},
        "method": {"budget": content["method"]["budget"]},
    }
    assert config.model_dump(exclude={"method"}) == check_config(needed).model_dump(
        exclude={"method"}
    )
    for trail in walk(RunConfig):
        place: Any = content
        for name in trail:
            assert name in place, trail
            place = place[name]
    assert content["method"].keys() - {"name", "also"} == fields_of(METHODS["apet"]).keys()


def test_the_listing_of_a_stream_is_one_too() -> None:
    content = parse_yaml(fields_as_yaml(StreamConfig))
    needed = {
        "output": content["output"],
        "backbone": {"path": content["backbone"]["path"]},
        "stream": {"name": content["stream"]["name"]},
        "method": {"budget": content["method"]["budget"]},
    }
    left, right = (
        check_stream_config(one).model_dump(exclude={"method"}) for one in (content, needed)
    )
    assert left == right
    assert {"train", "lae", "stream"} < content.keys()


@pytest.mark.parametrize("kind", [RunConfig, StreamConfig])
def test_the_listing_fits_a_terminal_and_has_no_open_end(kind: Any) -> None:
    listing = fields_as_yaml(kind)
    assert max(map(len, listing.splitlines())) <= 80
    assert listing.endswith("\n")
    assert not any(line != line.rstrip() for line in listing.splitlines())


def test_every_field_is_explained() -> None:
    for trail in walk(RunConfig):
        section: Any = RunConfig
        for name in trail:
            field = fields_of(section)[name]
            section = field.kind
        assert field.meaning, trail
        assert field.meaning in " ".join(LISTING.replace("#", "").split()) or trail in (
            ("task", "kind"),
            ("task", "metrics"),
        )
    for method, builder in METHODS.items():
        for field in fields_of(builder).values():
            assert field.meaning, (method, field.name)


def test_what_is_needed_what_is_allowed_and_where_paths_start() -> None:
    assert comment_of("output").startswith("NEEDED: the run folder")
    assert comment_of("warmup").endswith("(a number from 0 to below 1)")
    assert comment_of("schedule").endswith("(constant, linear or cosine)")
    assert comment_of("mode").endswith("(off, online or offline)")
    assert comment_of("kinds").endswith("(a list of matrix, embedding, norm or bias)")
    assert "accuracy, macro_f1" in comment_of("metrics")
    assert comment_of("block") == "side of the square (a whole number from 1)"
    assert comment_of("unit").endswith("cut to meet the budget")  # which names every unit
    assert comment_of("also").endswith("each as in {name: prompt, length: 20}")
    assert comment_of("template").startswith("NEEDED: the text of an example")
    assert "relative to the folder in which scalepet is started" in LISTING
    assert "# name: head" in LISTING


@pytest.mark.parametrize("section", [Task, Source, Picture])
def test_docstrings_and_fields_agree(section: type) -> None:
    names = [field.name for field in dataclasses.fields(section)]
    assert list(documented(section.__doc__)) == names


def test_a_docstring_is_read_entry_by_entry() -> None:
    def build(sites: Any, *, r: int, alpha: float = 1.0, beta: float = 2.0) -> None:
        """Builds.

        Args:
            r: the rank: small
                is good.
            alpha, beta: ``scales``.

        Raises:
            ConfigError: alpha is wrong.
        """

    assert documented(build.__doc__) == {
        "r": "the rank: small is good",
        "alpha": "scales",
        "beta": "scales",
    }
    fields = fields_of(build)
    assert list(fields) == ["r", "alpha", "beta"]
    assert fields["r"].default is NEEDED
    assert fields["beta"].default == 2.0
    assert documented(None) == documented("No arguments.") == {}


def test_every_option_of_a_method_is_a_keyword() -> None:
    for method, builder in METHODS.items():
        first, *rest = inspect.signature(builder).parameters.values()
        assert first.name == "sites", method
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in rest), method


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (str, "text"),
        (bool, "true or false"),
        (Literal["a", "b", "c"], "a, b or c"),
        (Literal["off"] | Literal["on", "auto"], "off, on or auto"),
        (tuple[str, ...], "a list of texts"),
        (tuple[float, float, float], "a list of 3 numbers"),
        (tuple[Annotated[int, Gt(0)], ...], "a list of whole numbers from 1"),
        (dict[str, str | list[str]] | None, "fields with text or a list of texts each, or null"),
        (dict[str, Any], "fields with any value each"),
        (Sequence[Literal["q", "k", "v"]] | None, "a list of q, k or v, or null"),
        (Annotated[int, Gt(0)], "a whole number from 1"),
        (Annotated[int, Gt(0)] | None, "a whole number from 1 or null"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert words_of(annotation) == words


def test_values_in_words() -> None:
    assert shown({"a": [None, True, 1.5], "b": "x"}) == "{a: [null, true, 1.5], b: 'x'}"
    assert re.fullmatch(r"'x{99}\.\.\.", shown("x" * 200))


def test_the_listing_stays_the_same_in_python(content: dict[str, Any]) -> None:
    assert (
        plain(check_config(parse_yaml(LISTING)))["train"] == plain(check_config(content))["train"]
    )
