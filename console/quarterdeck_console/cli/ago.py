"""Times as people type them: how long ago, or a moment."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def since_of(_context: click.Context, _option: click.Parameter, value: str | None) -> datetime | None:
    """`5m`, `1h30m` or a time becomes a time in UTC."""
    if value is None:
        return None
    try:
        if re.fullmatch(r"(\d+[smhd])+", value):
            seconds = sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhd])", value))
            return datetime.now(UTC) - timedelta(seconds=seconds)
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{value!r} is neither like 5m or 1h30m nor like 2026-01-31T12:00:00Z") from error
