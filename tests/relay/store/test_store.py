"""The Protocol and the built-in store say the same."""

from __future__ import annotations

import inspect

import pytest

from relay.store.sql_store import SqlStore
from relay.store.store import Store

METHODS = [
    name
    for name, value in vars(Store).items()
    if inspect.isfunction(value) and not name.startswith("_")
]


def test_there_are_methods() -> None:
    assert len(METHODS) > 30


@pytest.mark.parametrize("name", METHODS)
def test_sql_store_has_it_with_this_signature(name: str) -> None:
    promised = getattr(Store, name)
    built_in = vars(SqlStore)[name]
    assert inspect.signature(promised) == inspect.signature(built_in)
    assert inspect.iscoroutinefunction(promised)
    assert inspect.iscoroutinefunction(built_in)


def test_sql_store_has_nothing_more() -> None:
    more = {name for name in vars(SqlStore) if not name.startswith("_")}
    assert more == set(METHODS)
