"""Routes of operations: what was asked for, by whom, and what became of it."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Path, Query
from starlette.responses import Response

from quarterdeck_agent import protocol
from quarterdeck_agent.api.access import needs
from quarterdeck_agent.api.answers import answer
from quarterdeck_agent.api.bodies import OPERATION_ID
from quarterdeck_agent.api.routing import REF, Has, router
from quarterdeck_agent.principal import Role

routes = router("operations")


@routes.get("/v1/operations", response_model=list[protocol.Operation], summary="The last operations")
@needs(Role.VIEWER)
async def operations(
    parts: Has,
    limit: Annotated[int, Query(ge=1, le=1_000, description="How many at most.")] = 100,
    target: Annotated[str | None, Query(pattern=REF, description="Only of this deployment or version label.")] = None,
) -> Response:
    """Newest first."""
    return answer(await asyncio.to_thread(parts.records.operations, limit, target))


@routes.get("/v1/operations/{id}", response_model=protocol.Operation, summary="One operation")
@needs(Role.VIEWER)
async def operation(
    parts: Has, id: Annotated[str, Path(pattern=OPERATION_ID, description="The operation's id.")]
) -> Response:
    """The operation as it stands, with its steps so far."""
    return answer(await asyncio.to_thread(parts.records.operation, id))
