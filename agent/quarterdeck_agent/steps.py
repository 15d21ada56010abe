"""The steps a plan is made of: each one idempotent action on one deployment, as a value that says what and why.

How a step is performed stands in `performing.py`; a step itself does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from quarterdeck_agent.drivers.base import Found
from quarterdeck_agent.protocol import FailureReason
from quarterdeck_agent.wanted import WantedRevision

STOP_GRACE = 10.0
"""Seconds a replica has to end by itself before it is killed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Bring the version's verified files into their folder and the image onto the host."""

    needs_engine: ClassVar[bool] = True
    revision: WantedRevision


@dataclass(frozen=True, slots=True)
class Start:
    """Start one replica of a revision under this id, with these GPUs."""

    needs_engine: ClassVar[bool] = True
    revision: WantedRevision
    replica: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """Send the golden requests to one ready replica; remember that the body passed, or fail the revision."""

    needs_engine: ClassVar[bool] = False
    revision: WantedRevision
    replica: Found


@dataclass(frozen=True, slots=True)
class Hold:
    """From now on new requests wait for the target revision."""

    needs_engine: ClassVar[bool] = False
    revision: WantedRevision


@dataclass(frozen=True, slots=True)
class Release:
    """The hold is over: a revision serves again and nobody waits elsewhere."""

    needs_engine: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Promote:
    """The target gets the traffic."""

    needs_engine: ClassVar[bool] = False
    revision: WantedRevision


@dataclass(frozen=True, slots=True)
class Fail:
    """The target will not serve: record why. The live revision stays, or comes back."""

    needs_engine: ClassVar[bool] = False
    revision: WantedRevision
    step: str
    reason: FailureReason
    message: str
    replica: Found | None = None


@dataclass(frozen=True, slots=True)
class Bury:
    """A replica ended that nobody asked to end: record the crash, then forget the replica. Its logs stay."""

    needs_engine: ClassVar[bool] = True
    revision: WantedRevision
    replica: Found
    reason: FailureReason
    message: str


@dataclass(frozen=True, slots=True)
class Recover:
    """A revision has run well for long enough: forget its old crashes."""

    needs_engine: ClassVar[bool] = False
    revision: WantedRevision


@dataclass(frozen=True, slots=True)
class Stop:
    """End one replica that gets no requests any more, and forget it."""

    needs_engine: ClassVar[bool] = True
    replica: Found
    grace: float
    why: str


@dataclass(frozen=True, slots=True)
class Cool:
    """The previous revision is no longer kept warm."""

    needs_engine: ClassVar[bool] = False
    why: str


@dataclass(frozen=True, slots=True)
class Forget:
    """A removed deployment has nothing left on this host."""

    needs_engine: ClassVar[bool] = False


Step = Stage | Start | Check | Hold | Release | Promote | Fail | Bury | Recover | Stop | Cool | Forget
