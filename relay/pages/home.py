"""The home page: what this host is, for people who wonder.

derper's headers forbid inline styles (``Content-Security-Policy``), and they
are kept; so the style sheet has a path of its own. It is the one path that is
served here and not by derper.
"""

from __future__ import annotations

import hashlib
import html
from typing import Final

__all__ = ("STYLE_PATH", "STYLE_SHEET", "home_page")

STYLE_SHEET: Final = """\
:root { color-scheme: light dark; --ink: #1d2430; --dim: #5d6878; --paper: #f6f7f9;
  --card: #fff; --line: #dfe3ea; --accent: #3457d5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --dim: #98a3b3;
  --paper: #12151b; --card: #1a1f28; --line: #2c3442; --accent: #8ba4ff; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 4rem 1.25rem; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, sans-serif; }
main { max-width: 40rem; margin: 0 auto; }
svg { display: block; width: 100%; height: auto; margin: 2rem 0; }
svg text { fill: var(--dim); font: 13px system-ui, sans-serif; text-anchor: middle; }
svg rect { fill: var(--card); stroke: var(--line); stroke-width: 1.5; }
svg .relay { stroke: var(--accent); }
svg path { fill: none; stroke: var(--accent); stroke-width: 1.5;
  stroke-dasharray: 4 4; }
h1 { margin: 0; font-size: 2rem; letter-spacing: -.02em; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1rem; }
.lead { color: var(--dim); margin: .25rem 0 0; }
a { color: var(--accent); }
ul { padding-left: 1.2rem; margin: 0; }
.status { display: inline-block; margin-top: 1.5rem; padding: .3rem .8rem;
  border: 1px solid var(--line); border-radius: 2rem; background: var(--card); }
footer { margin-top: 3rem; color: var(--dim); font-size: .875rem; }
"""

# Changes with the sheet, so that browsers may keep it for ever.
STYLE_PATH: Final = (
    f"/style-{hashlib.sha256(STYLE_SHEET.encode()).hexdigest()[:12]}.css"
)

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DERP relay</title>
<link rel="stylesheet" href="{style}">
</head>
<body>
<main>
<h1>DERP relay</h1>
<p class="lead">This host carries encrypted packets between machines that cannot
reach each other directly.</p>
{disabled}
<svg viewBox="0 0 560 120" role="img" aria-label="Two nodes reach each other
through the relay, which sees only encrypted packets.">
<path d="M130 60H215M345 60H430"/>
<rect x="10" y="30" width="120" height="60" rx="10"/>
<rect class="relay" x="215" y="30" width="130" height="60" rx="10"/>
<rect x="430" y="30" width="120" height="60" rx="10"/>
<text x="70" y="65">node</text>
<text x="280" y="65">this relay</text>
<text x="490" y="65">node</text>
</svg>
<p>The nodes of a tailnet talk to each other over WireGuard. Where a firewall or
a NAT is in the way, they meet here. What passes is sealed from end to end: the
relay has no key to it, keeps nothing of it, and knows only the public keys it
passes packets between. It also tells nodes, by STUN, how the internet sees
them, so that many find a direct way after all.</p>
<h2>Read more</h2>
<ul>
<li><a href="https://tailscale.com/kb/1232/derp-servers">What DERP servers do</a></li>
<li><a href="https://pkg.go.dev/tailscale.com/derp">The protocol</a></li>
</ul>
{debug}
<footer>This relay is run by whoever runs this host, not by Tailscale Inc. For
abuse reports, see who the IP address belongs to.</footer>
</main>
</body>
</html>
"""


def home_page(*, is_disabled: bool, allows_debug: bool) -> bytes:
    """The page.

    Args:
        is_disabled: This host relays no more (``-derp=false``).
        allows_debug: The reader may see ``/debug/``.
    """
    return _PAGE.format(
        style=html.escape(STYLE_PATH),
        disabled=(
            '<p class="status">Status: <b>disabled</b></p>' if is_disabled else ""
        ),
        debug=(
            '<h2>For the operator</h2>\n<p>Debug info is at <a href="/debug/">'
            "/debug/</a>.</p>"
            if allows_debug
            else ""
        ),
    ).encode()
