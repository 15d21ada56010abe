"""What the route modules share: how a router is made, and the parameters that come again and again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.requests import Request

from quarterdeck_agent.api.access import authorise
from quarterdeck_agent.api.bodies import generation, operation_id
from quarterdeck_agent.api.ports import Parts
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.principal import Principal

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
REF = r"^[A-Za-z0-9][A-Za-z0-9._+:-]{0,126}$"
DIGEST = r"^[0-9a-f]{64}$"


def router(tag: str) -> APIRouter:
    """A router whose every route asks `authorise` first."""
    return APIRouter(tags=[tag], dependencies=[Depends(authorise)], redirect_slashes=False)


def _parts(request: Request) -> Parts:
    parts = request.app.state.parts
    assert isinstance(parts, Parts)
    return parts


Has = Annotated[Parts, Depends(_parts)]
Caller = Annotated[Principal, Depends(authorise)]
OperationId = Annotated[str, Depends(operation_id)]
Generation = Annotated[int | None, Depends(generation)]
Name = Annotated[str, Path(pattern=NAME, description="The deployment's name.")]
Ref = Annotated[
    str, Path(pattern=REF, description="A version: its label, its id, or the first 8 or more digits of it.")
]
Digest = Annotated[
    str, Path(pattern=DIGEST, description="SHA-256 of the whole blob, 64 lower-case hexadecimal digits.")
]


def utc(moment: datetime | None, field: str) -> datetime | None:
    """`moment` in UTC. Raises `InvalidInput` at the ends of the calendar, where that cannot be said."""
    try:
        return None if moment is None else moment.astimezone(UTC)
    except OverflowError:
        raise InvalidInput("That time lies outside the calendar", field=field, hint="Name a nearer one.") from None
