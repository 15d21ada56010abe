"""Pure: a plan as its hosts worked it out, as lines to read before answering."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from textual.content import Content

from quarterdeck_agent.protocol import Preview
from quarterdeck_console import views
from quarterdeck_console.clean import clean_line
from quarterdeck_console.errors import ConsoleError
from quarterdeck_console.tui import words
from quarterdeck_console.tui.messages import Kind, Wish
from quarterdeck_console.views import Severity

NAME = 12

ENDS: dict[Kind, str] = {
    "stop": "nothing serves it: requests are answered 503 until it is deployed or rolled back",
    "remove": "nothing serves it any more: requests are answered 404",
}
"""What whoever calls the model notices of a change that ends it."""


def plan(wish: Wish, previews: Sequence[Preview | ConsoleError], width: int) -> Content:
    """What would happen on each target, or why that is not known, in lines of at most `width` columns."""
    parts: list[Content] = []
    for target, preview in zip(wish.targets, previews, strict=True):
        if len(wish.targets) > 1:
            parts.append(words.line(f"{target.name} on {target.host}", "bold"))
        pairs = _refused(preview) if isinstance(preview, ConsoleError) else _lines(preview, wish.kind)
        parts += [line for pair in pairs for line in _wrapped(*pair, width)]
    return words.lines(parts)


Pair = tuple[str, str, Severity]


def _refused(error: ConsoleError) -> list[Pair]:
    lines = [_pair("✖ refused", error.detail, Severity.BAD)]
    return [*lines, _pair("", error.hint, Severity.MUTED)] if error.hint else lines


def _lines(preview: Preview, kind: Kind) -> list[Pair]:
    lines = [
        _pair("handover", f"{preview.handover}: {preview.why}"),
        _pair("expected", _expected(preview, kind)),
    ]
    for index, change in enumerate(preview.changes or ()):
        lines.append(_pair("changes" if index == 0 else "", views.change(change), Severity.BUSY))
    if not preview.changes:
        lines.append(_pair("changes", "none", Severity.MUTED))
    lines.append(_pair("steps", " · ".join(preview.steps)))
    lines += [_pair("▲ warning", warning, Severity.WARNING) for warning in preview.warnings]
    return [*lines, _pair("if it fails", preview.if_it_fails)]


def _expected(preview: Preview, kind: Kind) -> str:
    """What whoever calls the model notices, of what ends, begins, or goes on."""
    if kind in ENDS:
        return ENDS[kind]
    if any((change.field, change.old) in (("version", None), ("stopped", "true")) for change in preview.changes or ()):
        return "nothing serves it now: requests are answered from when it is ready"
    return pause(preview.expected_pause)


def pause(seconds: float | None) -> str:
    """What whoever calls the model notices of the change."""
    if not seconds:
        return "no pause: requests go on being answered"
    return f"requests wait about {views.duration(seconds)}; none is refused while there is room to wait"


def _pair(name: str, value: str, meaning: Severity = Severity.PLAIN) -> Pair:
    return name, value, meaning


def _wrapped(name: str, value: str, meaning: Severity, width: int) -> Iterator[Content]:
    for index, text in enumerate(textwrap.wrap(clean_line(value), max(20, width - NAME)) or [""]):
        yield words.joined((f"{'' if index else name:<{NAME}}", Severity.MUTED), (text, meaning))
