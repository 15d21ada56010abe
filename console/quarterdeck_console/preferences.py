"""The user's own settings of the terminal UI, read from `console.toml`: theme, refresh, mouse and keys.

Places: the file in `QUARTERDECK_CONSOLE`, else `console.toml` in the XDG configuration folder. It is only read. Which
key ids there are is the UI's business; which keys may be bound at all is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quarterdeck_console.errors import Usage

TAKEN = {
    "ctrl+a": "screen",
    "ctrl+b": "tmux",
    "ctrl+q": "flow control",
    "ctrl+s": "flow control",
    "ctrl+z": "job control",
}
"""Keys that belong to others: never bound, not even when a file says so."""

MOST_OFTEN, LEAST_OFTEN = 0.5, 60.0
"""Bounds of `refresh` in seconds."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """How the UI looks and listens. `theme` `None` lets the UI choose; `keys` maps a binding's id to its keys."""

    theme: str | None = None
    refresh: float = 2.0
    mouse: bool = True
    keys: Mapping[str, str] = field(default_factory=dict)


def path(environ: Mapping[str, str]) -> Path:
    """Where the file lies, whether or not it is there."""
    if chosen := environ.get("QUARTERDECK_CONSOLE"):
        return Path(chosen).expanduser()
    from platformdirs import user_config_path

    return user_config_path("quarterdeck") / "console.toml"


def load(environ: Mapping[str, str], theme: str | None = None) -> Preferences:
    """The preferences as the file has them, the defaults without one; `theme` goes before the file's.

    Raises `Usage` with the key that is wrong.
    """
    place = path(environ)
    try:
        text = place.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Preferences(theme)
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"cannot read {place}: {error}") from error
    found = parse(text, place)
    return found if theme is None else replace(found, theme=theme)


def parse(text: str, place: Path) -> Preferences:
    """The preferences of a file's text."""
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Usage(f"{place} is not valid TOML: {error}") from error
    known: dict[str, Any] = {"theme": str, "refresh": (int, float), "mouse": bool, "keys": dict}
    for key, value in document.items():
        if key not in known:
            raise Usage(f"{place}: unknown key {key!r}", hint=f"known are {', '.join(known)}")
        if not isinstance(value, known[key]) or (key == "refresh" and isinstance(value, bool)):
            raise Usage(f"{place}: the value of {key!r} has the wrong type")
    refresh = float(document.get("refresh", 2.0))
    if not MOST_OFTEN <= refresh <= LEAST_OFTEN:
        raise Usage(f"{place}: `refresh` must be between {MOST_OFTEN:g} and {LEAST_OFTEN:g} seconds")
    return Preferences(
        document.get("theme"), refresh, document.get("mouse", True), _keys(document.get("keys", {}), place)
    )


def _keys(table: Mapping[str, Any], place: Path) -> dict[str, str]:
    for name, keys in table.items():
        if not isinstance(keys, str) or not keys.strip():
            raise Usage(f'{place}: keys.{name} must name one or more keys, like "ctrl+r" or "j,down"')
        for key in keys.split(","):
            if key.strip() in TAKEN:
                raise Usage(f"{place}: keys.{name} cannot be {key.strip()}: it belongs to {TAKEN[key.strip()]}")
    return dict(table)
