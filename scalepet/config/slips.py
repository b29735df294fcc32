"""What pydantic takes for a number or a truth value and a person does not mean as one: true for 1,
"3" for 3, 1 for true.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from scalepet.config.fields import Field, Trail, fields_of, item_of, without_null

_PLAIN = {int: (int,), float: (int, float), bool: (bool,)}


def slips(section: Any, content: Any, parents: Trail = ()) -> Iterator[tuple[Trail, Field, Any]]:
    """The trail of each such value in a section and in those inside it, its field and the value."""
    if not isinstance(content, Mapping):
        return
    for name, field in fields_of(section).items():
        if name not in content:
            continue
        kind, value = without_null(field.kind), content[name]
        if kind in _PLAIN and value is not None and type(value) not in _PLAIN[kind]:
            yield (*parents, name), field, value
        elif item_of(kind) in _PLAIN and isinstance(value, (list, tuple)):
            if any(type(one) not in _PLAIN[get_args(kind)[0]] for one in value):
                yield (*parents, name), field, value
        elif fields_of(item_of(kind)) and isinstance(value, (list, tuple)):
            for index, one in enumerate(value):
                yield from slips(item_of(kind), one, (*parents, f"{name}[{index}]"))
        else:
            yield from slips(kind, value, (*parents, name))
