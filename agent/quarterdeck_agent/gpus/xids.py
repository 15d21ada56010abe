"""NVIDIA's Xids as data: which number means what, and what helps. Reads `xids.toml`; knows nothing of any one GPU."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from quarterdeck_agent.protocol import XidEvent

DATA = Path(__file__).parent / "xids.toml"


class Action(StrEnum):
    """What an Xid asks for, the worst last. `xids.toml` says what each means."""

    IGNORE = "ignore"
    RESTART = "restart the app"
    SUPPORT = "contact support"
    DRAIN = "drain and reset the GPU"
    RESET = "reset the GPU"
    REBOOT = "reboot the host"


@dataclass(frozen=True, slots=True)
class Xid:
    """One number of the catalogue."""

    meaning: str
    action: Action


UNKNOWN = Xid("a number that is not in the catalogue", Action.SUPPORT)
"""A newer driver may report what this catalogue does not have: somebody should look, and nothing is taken away."""


@dataclass(frozen=True, slots=True)
class XidCatalogue:
    """Every known Xid by its number."""

    known: Mapping[int, Xid]

    def event(self, code: int, at: datetime) -> XidEvent:
        """An Xid that was reported, in words."""
        found = self.known.get(code, UNKNOWN)
        return XidEvent(at, code, found.meaning, found.action.value)


def load_xids(path: Path = DATA) -> XidCatalogue:
    """The catalogue at `path`. Raises `ValueError` or `KeyError` where an entry is not complete."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["xids"]
    return XidCatalogue({int(code): Xid(entry["meaning"], Action(entry["action"])) for code, entry in entries.items()})
