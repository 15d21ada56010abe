"""Routes of GPUs: the one change that can be asked for. What they are is told by the status."""

from __future__ import annotations

import asyncio
from typing import Annotated
from urllib.parse import quote

from fastapi import Path
from starlette.responses import Response

from quarterdeck_agent import protocol
from quarterdeck_agent.api.access import needs
from quarterdeck_agent.api.answers import answer
from quarterdeck_agent.api.bodies import Body
from quarterdeck_agent.api.routing import Caller, Has, OperationId, router
from quarterdeck_agent.principal import Role

UUID = r"^[A-Za-z0-9][A-Za-z0-9-]{0,79}$"

routes = router("gpus")


@routes.post("/v1/gpus/{uuid}/trust", response_model=protocol.Operation, status_code=202, summary="Trust a GPU again")
@needs(Role.OPERATOR)
async def trust(
    parts: Has,
    uuid: Annotated[str, Path(pattern=UUID, description="The GPU's uuid, as the status tells it.")],
    caller: Caller,
    operation: OperationId,
    body: Annotated[protocol.ChangeRequest, Body(protocol.ChangeRequest, optional=True)],
) -> Response:
    """For after a reset or a repair: Xids and memory errors until now do not count any more, so that a sick GPU takes
    claims again. What NVML says of it at this moment still counts. Nothing moves back to it.
    """
    made = await asyncio.to_thread(parts.gpus.trust, uuid, body, caller.name, operation)
    return answer(made, 202, {"location": f"/v1/operations/{quote(made.id, safe='')}"})
