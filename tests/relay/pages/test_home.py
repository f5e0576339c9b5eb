from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from relay.pages.home import STYLE_PATH, STYLE_SHEET, home_page

VOID = {"meta", "link", "path", "rect", "br"}


class Balance(HTMLParser):
    """Checks that what is opened is closed, and collects links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # The policy of the page forbids these.
        assert tag not in {"style", "script"}
        assert "style" not in dict(attrs)
        self.links += [value for name, value in attrs if name == "href" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("is_disabled", [False, True])
@pytest.mark.parametrize("allows_debug", [False, True])
def test_page(is_disabled: bool, allows_debug: bool) -> None:
    page = home_page(is_disabled=is_disabled, allows_debug=allows_debug).decode()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "{" not in page  # all filled in
    assert ("disabled" in page) is is_disabled
    assert ("/debug/" in parser.links) is allows_debug
    assert STYLE_PATH in parser.links
    assert "https://tailscale.com/kb/1232/derp-servers" in parser.links


def test_style_sheet_covers_the_classes_of_the_page() -> None:
    page = home_page(is_disabled=True, allows_debug=True).decode()
    for name in re.findall(r'class="(\w+)"', page):
        assert f".{name} " in STYLE_SHEET
    assert STYLE_SHEET.count("{") == STYLE_SHEET.count("}")
