"""Who asks: a principal and its role. Pure values; how somebody proves to be one is `api/access.py`'s business."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a principal may do: each role may all that the ones before it may, and roles match by exact name."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        return _ORDER.index(self) >= _ORDER.index(needed)


_ORDER = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who was let in. `name` is what history shows: the local user on the agent's own socket."""

    name: str
    role: Role
