"""The one `clean()` for text that came from elsewhere: labels, log lines, errors, names.

A terminal obeys bytes that a remote program chose (ESC, OSC 52, C1) and shows text in an order that lies (bidi,
zero-width). Every such character becomes a visible escape here, at the client's boundary, so that nothing behind it
has to think of it. Sources: ECMA-48 (C0, C1), Unicode TR 36 and TR 9 (bidirectional controls).
"""

from __future__ import annotations

import re
from typing import Any

_DANGEROUS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but \t and \n, DEL, C1
    "\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"  # invisible fillers and marks
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # zero-width, bidi, line separators
    "\ud800-\udfff\U000e0000-\U000e007f"  # lone surrogates, tag characters
)
_CLEAN = re.compile(f"[{_DANGEROUS}]")
_LINE = re.compile(f"[{_DANGEROUS}\n\t]")
_SUSPECT_ASCII = re.compile(rb"[\\\x7f]")


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code in (0x0A, 0x09, 0x0D):
        return {0x0A: "\\n", 0x09: "\\t", 0x0D: "\\r"}[code]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def clean(text: str) -> str:
    """`text` with every control, bidirectional and invisible character as a visible escape; newline and tab stay."""
    return _CLEAN.sub(_visible, text)


def clean_line(text: str) -> str:
    """As `clean()`, and newlines and tabs become visible too: for one cell or one line."""
    return _LINE.sub(_visible, text)


def clean_all(value: Any) -> Any:
    """Every string inside decoded JSON cleaned, the keys of objects too."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [clean_all(each) for each in value]
    if isinstance(value, dict):
        return {clean_all(key): clean_all(each) for key, each in value.items()}
    return value


def escape_json(text: str) -> str:
    """JSON text with every such character as a JSON escape: the same value, harmless where it is shown."""
    return _CLEAN.sub(_json_escape, text)


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def is_plain(raw: bytes) -> bool:
    """Whether this JSON text cannot hold anything to clean: plain ASCII without an escape."""
    return raw.isascii() and _SUSPECT_ASCII.search(raw) is None
