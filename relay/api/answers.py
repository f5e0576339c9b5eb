"""Answers of the API: JSON, and errors in the shape that Coder's SDK reads.

Shape and texts: coder ``coderd/httpapi/httpapi.go`` and ``codersdk.Response``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from relay.pages.page import Response

__all__ = (
    "FORBIDDEN",
    "NOT_FOUND",
    "ROUTE_NOT_FOUND",
    "Validation",
    "error_answer",
    "json_answer",
)

JSON: Final = ("Content-Type", "application/json; charset=utf-8")


class Validation(NamedTuple):
    """What is wrong with one field of a request."""

    field: str
    detail: str


def json_answer(status: int, value: Any) -> Response:
    """An answer in JSON, with the newline that Go's encoder ends with."""
    return Response(status, (JSON,), msgspec.json.encode(value) + b"\n")


def error_answer(
    status: int, message: str, detail: str = "", validations: Sequence[Validation] = ()
) -> Response:
    """An error: Coder's SDK shows ``message`` and ``detail`` to people.

    Args:
        status: HTTP status.
        message: What is wrong, and what to do.
        detail: More of it; left out when empty.
        validations: Fields that are wrong; left out when there are none.
    """
    body: dict[str, Any] = {"message": message}
    if detail:
        body["detail"] = detail
    if validations:
        body["validations"] = [v._asdict() for v in validations]
    return json_answer(status, body)


# The same whether a thing is not there or not yours: who may not see it cannot
# find out that it exists.
NOT_FOUND: Final = error_answer(
    404, "Resource not found or you do not have access to this resource"
)
ROUTE_NOT_FOUND: Final = error_answer(404, "Route not found.")
FORBIDDEN: Final = error_answer(
    403,
    "Forbidden.",
    "You don't have permission to view this content. If you believe this is a "
    "mistake, please contact your administrator or try signing in with different "
    "credentials.",
)
