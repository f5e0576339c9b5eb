"""The bodies of answers, as Go's server writes them."""

from __future__ import annotations

from relay.api.answers import NOT_FOUND, Validation, error_answer, json_answer


def test_json_ends_with_a_newline() -> None:
    answer = json_answer(201, {"a": [1, None]})
    assert answer.status == 201
    assert answer.body == b'{"a":[1,null]}\n'
    assert answer.headers == (("Content-Type", "application/json; charset=utf-8"),)


def test_errors_leave_out_what_is_empty() -> None:
    assert error_answer(400, "No.").body == b'{"message":"No."}\n'
    assert (
        error_answer(400, "No.", "Because.", [Validation("version", "too old")]).body
        == b'{"message":"No.","detail":"Because.",'
        b'"validations":[{"field":"version","detail":"too old"}]}\n'
    )


def test_not_found_says_nothing_about_what_exists() -> None:
    assert NOT_FOUND.body == (
        b'{"message":"Resource not found or you do not have access to this resource"}\n'
    )
