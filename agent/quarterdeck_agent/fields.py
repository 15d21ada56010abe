"""Reading tables of untrusted values: each reader checks one field and names it in full when it is wrong.

Knows types, sizes, durations and paths; knows nothing of models. Raises `InvalidInput` and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from quarterdeck_agent.errors import InvalidInput

MAX_DEPTH = 32
MAX_VALUES = 200_000
MAX_PATH = 1024
MAX_PARTS = 32

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kMGT]i?B|KB|B)")
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"kiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9}(?:\.[0-9]{1,6})?)s)?(?:([0-9]{1,9})ms)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Fields:
    """One table, read field by field; `done` complains about what nobody asked for."""

    def __init__(self, table: object, where: str, called: str) -> None:
        if not isinstance(table, dict):
            raise _wrong(where or called, table, "a table")
        self._table: dict[str, Any] = table
        self._where = where
        self._called = called
        self._known: list[str] = []

    def at(self, key: str) -> str:
        """The full name of a field of this table."""
        return f"{self._where}.{key}" if self._where else key

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def take(self, key: str, default: Any = None) -> Any:
        self._known.append(key)
        return self._table.get(key, default)

    def required(self, key: str) -> Any:
        if key not in self._table:
            raise InvalidInput(
                f"{self._called} has no {self.at(key)}", field=self.at(key), hint=f"Add a line: {key} = ..."
            )
        return self.take(key)

    def table(self, key: str) -> Fields:
        return Fields(self.take(key, {}), self.at(key), self._called)

    def tables(self, key: str, at_most: int) -> Iterator[Fields]:
        listed = self.take(key, [])
        if not isinstance(listed, list):
            raise _wrong(self.at(key), listed, f"a list of tables ([[{key}]])")
        if len(listed) > at_most:
            raise InvalidInput(f"{self.at(key)} has {len(listed)} entries; {at_most} are allowed", field=self.at(key))
        return (Fields(entry, f"{self.at(key)}[{index}]", self._called) for index, entry in enumerate(listed))

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise _wrong(self.at(key), value, f"a table ([{key}])")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            raise _wrong(self.at(key), value, "a text in quotes")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise _wrong(self.at(key), value, "true or false")
        return value

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(self.at(key), value, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _wrong(self.at(key), value, f"a number from {low:g} to {high:g}")
        return float(value)

    def optional_number(self, key: str, low: float, high: float) -> float | None:
        return self.number(key, low, low, high) if key in self else self.take(key)

    def matching(self, key: str, pattern: re.Pattern[str], expected: str) -> str | None:
        if key not in self:
            return None
        value = self.take(key)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _wrong(self.at(key), value, expected)
        return value

    def size(self, key: str) -> int | None:
        """Bytes, as a number or as text such as "4GiB" (1024) or "4GB" (1000)."""
        if key not in self:
            return None
        value = self.take(key)
        if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            value = int(float(match[1]) * _UNITS[match[2]])
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 50:
            raise _wrong(self.at(key), value, 'a size, for example "4GiB" or "512MB"')
        return value

    def duration(self, key: str, default: float, low: float, high: float) -> float:
        """Seconds, as a number or as text such as "90s", "1h30m" or "500ms"."""
        value = self.take(key, default)
        if isinstance(value, str) and value and (match := _DURATION.fullmatch(value)):
            hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
            value = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _wrong(self.at(key), value, f'a duration from {low:g} s to {high:g} s, for example 30 or "10m"')
        return float(value)

    def done(self) -> None:
        """Refuse keys that no reader asked for."""
        for key in self._table:
            if key not in self._known:
                raise InvalidInput(
                    f"{self._called} has an unknown key {self.at(key)[:200]!r}",
                    field=self.at(key)[:200],
                    hint=f"Known here: {', '.join(sorted(self._known))}.",
                )


def check_json(value: object, called: str) -> None:
    """Refuse what JSON cannot carry: other types, too deep or too many values, NaN, huge numbers, broken text."""
    waiting: list[tuple[object, str, int]] = [(value, "", 0)]
    seen = 0
    while waiting:
        one, where, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise InvalidInput(f"{called} is nested too deep or holds too many values", field=where[:200] or called)
        if isinstance(one, dict):
            for key in one:
                if not isinstance(key, str):
                    raise _wrong(where or called, key, "a table whose keys are text")
                _check_characters(key, where or called)
            waiting.extend((inner, f"{where}.{key}" if where else key, depth + 1) for key, inner in one.items())
        elif isinstance(one, list | tuple):
            waiting.extend((inner, f"{where}[{index}]", depth + 1) for index, inner in enumerate(one))
        else:
            _check_scalar(one, where or called)


def _check_scalar(value: object, where: str) -> None:
    if isinstance(value, str):
        _check_characters(value, where)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise _wrong(where, value, "a number of at most 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _wrong(where, value, "a finite number")
    else:
        raise _wrong(where, value, "text, a number, true or false (put dates and times in quotes)")


def _check_characters(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{_clipped(where)} is not valid Unicode text", field=_clipped(where)) from None


def check_text(value: str, where: str, at_most: int) -> str:
    """One line of text for people."""
    if not value or len(value) > at_most or _CONTROL.search(value):
        raise _wrong(where, value, f"one line of 1 to {at_most} characters")
    return value


def check_path(value: object, where: str) -> str:
    """A path inside a bundle: relative, `/` between parts, nothing that leads out of it."""
    hint = "Write a path relative to model.toml with '/' between parts, without '..', for example \"weights/a.bin\"."
    if not isinstance(value, str):
        raise _wrong(where, value, "a path in quotes")
    try:
        length = len(value.encode())
        parts = value.split("/")
        too_long = any(len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:
        raise InvalidInput(f"{where} is not valid Unicode text", field=where, hint="Rename the file.") from None
    if _CONTROL.search(value):
        raise InvalidInput(f"{where}: {value[:80]!r} holds a control character", field=where, hint="Rename the file.")
    if too_long or length > MAX_PATH or len(parts) > MAX_PARTS:
        raise InvalidInput(
            f"{where}: {value[:80]!r}… is too long (255 bytes a part, {MAX_PATH} in all, {MAX_PARTS} parts)",
            field=where,
            hint="Shorten the names.",
        )
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(f"{where}: {value[:80]!r} is not a path inside the bundle", field=where, hint=hint)
    return value


def _wrong(where: str, value: object, expected: str) -> InvalidInput:
    if isinstance(value, str):
        got = repr(value[:80])
    elif isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**30):
        got = str(value).lower() if isinstance(value, bool) else str(value)
    else:
        got = f"a value of type {type(value).__name__}"
    return InvalidInput(f"{_clipped(where)} is {got}", field=_clipped(where), hint=f"Write {expected}.")


def _clipped(where: str) -> str:
    return where[:200].encode(errors="replace").decode()
