"""Pure: a version as lines to read: what it is, its configuration, its files and its card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from textual.content import Content

from quarterdeck_agent.protocol import Change, Version
from quarterdeck_console import views
from quarterdeck_console.tui import words
from quarterdeck_console.tui.screens import card
from quarterdeck_console.views import NOTHING, Severity

NAME = 10
FILES = 40
"""Files that are named."""


def version(each: Version, now: datetime) -> Content:
    """Everything about a version."""
    lines = [words.line(each.label, "bold"), *_facts(each, now)]
    if each.card:
        lines += [heading("MODEL CARD"), card.card(each.card)]
    lines += [*_config(each.config), *_files(each)]
    return words.lines(lines)


def _facts(each: Version, now: datetime) -> list[Content]:
    formats = ", ".join(each.formats) or NOTHING
    return [
        pair("id", each.id),
        pair("runtime", each.runtime),
        pair("size", f"{views.size(each.size)} in {views.count(len(each.files), 'file')}"),
        words.joined(
            pair("formats", formats), ("  ▲ pickle was allowed" if each.pickle_allowed else "", Severity.WARNING)
        ),
        pair("pushed", f"{views.instant(each.created_at)} ({views.age(each.created_at, now)} ago) by {each.by}"),
        *([pair("ran on", ", ".join(f"{key} {value}" for key, value in each.facts.items()))] if each.facts else []),
    ]


def _config(config: Mapping[str, Any]) -> list[Content]:
    """`model.toml` as the agent read it, a line for each value."""
    known = {key: value for key, value in config.items() if key not in ("name", "version", "runtime", "card")}
    metadata = known.pop("metadata", None)
    lines: list[Content] = []
    if isinstance(metadata, Mapping) and metadata:
        lines += [heading("METADATA"), *_pairs(metadata)]
    if known:
        lines.append(heading("CONFIGURATION"))
        for key, value in known.items():
            if isinstance(value, Mapping):
                lines += [pair(key, ""), *_pairs(value, "  ")]
            else:
                lines.append(pair(key, text(value)))
    return lines


def _pairs(values: Mapping[str, Any], indent: str = "") -> list[Content]:
    width = min(24, max((len(str(key)) for key in values), default=0))
    return [pair(indent + str(key), text(value), width + len(indent)) for key, value in values.items()]


def _files(each: Version) -> list[Content]:
    if not each.files:
        return []
    largest = sorted(each.files, key=lambda file: (-file.size, file.path))
    lines = [heading("FILES")]
    for file in largest[:FILES]:
        lines.append(
            words.joined(
                (f"{views.size(file.size):>10}  ", ""), (f"{file.sha256[:8]}  ", Severity.MUTED), (file.path, "")
            )
        )
    if len(largest) > FILES:
        lines.append(words.line(f"… and {len(largest) - FILES} smaller ones", Severity.MUTED))
    return lines


def diff(title: str, changes: Sequence[Change]) -> Content:
    """What differs, one line a field: what is gone, what is new, what changed."""
    lines = [words.line(title, "bold")]
    if not changes:
        lines.append(words.line("nothing differs", Severity.MUTED))
    width = min(34, max((len(each.field) for each in changes), default=0))
    for each in changes:
        lines.append(change(each, width))
    return words.lines(lines)


def change(each: Change, width: int = 0) -> Content:
    """One line of a diff."""
    name = (f"{each.field:<{width}}  ", Severity.MUTED)
    if each.old is None:
        return words.joined(("+ ", Severity.GOOD), name, (each.new or NOTHING, Severity.GOOD))
    if each.new is None:
        return words.joined(("- ", Severity.BAD), name, (each.old, Severity.BAD))
    return words.joined(("~ ", Severity.BUSY), name, (each.old, Severity.BAD), (" → ", ""), (each.new, Severity.GOOD))


def heading(title: str) -> Content:
    """The name of a section, with room above it."""
    return words.lines([words.line(""), words.line(title, "bold $text-accent")])


def pair(name: str, value: str, width: int = NAME) -> Content:
    """A name and a value on one line."""
    return words.joined((f"{name:<{width}} ", Severity.MUTED), (value, ""))


def text(value: Any) -> str:
    """A value of JSON's types in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
