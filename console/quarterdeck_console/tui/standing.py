"""Pure: how a deployment stands, in one word: what the band counts, and what the fleet's table sorts and colours by."""

from __future__ import annotations

from enum import IntEnum

from quarterdeck_agent.protocol import DeploymentState, DeploymentStatus
from quarterdeck_console import views
from quarterdeck_console.views import Severity


class Standing(IntEnum):
    """The worst first."""

    FAILED = 0
    """Nobody is answered."""
    LOST = 1
    """Its host does not answer: nobody knows."""
    DEGRADED = 2
    REFUSED = 3
    """It serves as before; what was to replace it failed."""
    CHANGING = 4
    UNKNOWN = 5
    SERVING = 6
    STOPPED = 7


_BY_SEVERITY = {
    Severity.BAD: Standing.FAILED, Severity.WARNING: Standing.DEGRADED, Severity.BUSY: Standing.CHANGING,
    Severity.PLAIN: Standing.UNKNOWN, Severity.GOOD: Standing.SERVING, Severity.MUTED: Standing.STOPPED,
}  # fmt: skip

MEANING = {standing: severity for severity, standing in _BY_SEVERITY.items()} | {
    Standing.LOST: Severity.BAD, Standing.REFUSED: Severity.BAD,
}  # fmt: skip


def standing(each: DeploymentStatus, lost: bool) -> Standing:
    """How a deployment stands; `lost` when its host does not answer."""
    if lost:
        return Standing.LOST
    if each.state == DeploymentState.SERVING and each.failure is not None:
        return Standing.REFUSED
    return _BY_SEVERITY[views.severity(each.state)]
