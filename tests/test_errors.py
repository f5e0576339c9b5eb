"""The tree of exceptions, and the drawing of it."""

from __future__ import annotations

import inspect
import re

import pytest

from tailnet import errors

ENTRY = re.compile(r"^( *)\* :exc:`(\w+)`")


def drawn_tree() -> dict[str, str | None]:
    """Each exception of the docstring, and the one it is drawn under."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := ENTRY.match(line):
            depth, rest = divmod(len(found[1]), 4)
            assert rest == 0, line
            assert depth <= len(path), line
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1] if depth else None
    return parents


def real_tree() -> dict[str, str | None]:
    return {
        name: None if cls.__bases__[0] is Exception else cls.__bases__[0].__name__
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if cls.__module__ == errors.__name__
    }


def test_tree_is_drawn_as_it_is() -> None:
    assert drawn_tree() == real_tree()
    assert set(real_tree()) == set(errors.__all__)


def test_everything_is_a_tailnet_error() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.TailnetError)


def test_format_errors_are_value_errors() -> None:
    """So that parsers of settings can treat them like int()'s."""
    for cls in (errors.KeyFormatError, errors.DERPMapError):
        assert issubclass(cls, ValueError)


def test_unknown_attributes_names_them() -> None:
    with pytest.raises(errors.RemoteProtocolError, match="0x0003, 0x7fff") as caught:
        raise errors.UnknownAttributesError(bytes(12), (3, 0x7FFF))
    assert isinstance(caught.value, errors.UnknownAttributesError)
    assert (caught.value.tx_id, caught.value.types) == (bytes(12), (3, 0x7FFF))
