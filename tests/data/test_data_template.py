import pytest

from scalepet.data.template import (
    parse_template,
    render,
    template_columns,
    template_fault,
    value_text,
)


def test_columns_and_literal_braces() -> None:
    template = "Input: {premise} {{x}} {hypothesis} {premise} Output: "
    assert template_columns(template) == ("premise", "hypothesis")
    text = render(parse_template(template), {"premise": "a {b}", "hypothesis": "c"})
    assert text == "Input: a {b} {x} c a {b} Output: "


def test_column_names_may_hold_what_python_names_may_not() -> None:
    assert template_columns("{my text} {0} {a.b}") == ("my text", "0", "a.b")


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{text", "expected '}'"),
        ("text}", "Single '}'"),
        ("{}", "without a column name"),
        ("{text!r}", "'text'"),
        ("{text:>5}", "'text'"),
        ("no column", "names no column"),
        ("", "names no column"),
    ],
)
def test_faults(template: str, part: str) -> None:
    fault = template_fault(template)
    assert fault is not None
    assert part in fault


def test_no_fault() -> None:
    assert template_fault("{text}") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a ", "a "),
        (7, "7"),
        (1.5, "1.5"),
        (True, "True"),
        (None, None),
        ("", None),
        (" \n", None),
        (float("nan"), None),
        (["a"], None),
        ({"a": 1}, None),
    ],
)
def test_value_text(value: object, text: str | None) -> None:
    assert value_text(value) == text
