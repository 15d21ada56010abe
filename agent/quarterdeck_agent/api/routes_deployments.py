"""Routes of deployments: what they are, and the changes that can be asked for. Each change can be previewed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Query
from starlette.responses import Response

from quarterdeck_agent import protocol
from quarterdeck_agent.api.access import needs
from quarterdeck_agent.api.answers import answer
from quarterdeck_agent.api.bodies import Body
from quarterdeck_agent.api.ports import Parts
from quarterdeck_agent.api.routing import Caller, Generation, Has, Name, OperationId, router
from quarterdeck_agent.bundle import public, public_version
from quarterdeck_agent.errors import NotFound
from quarterdeck_agent.principal import Role

routes = router("deployments")

Plan = Annotated[bool, Query(description="Only tell what would happen: 200 with a preview, and nothing is changed.")]
CHANGE: dict[str, Any] = {
    "status_code": 202,
    "response_model": protocol.Operation,
    "response_description": "The change is accepted; follow its operation.",
    "responses": {200: {"model": protocol.Preview, "description": "With `?plan=true`: what the change would do."}},
}


@dataclass(frozen=True, slots=True)
class ChangeAsked:
    """All that a request for a change says besides its body. With `plan` nothing is to be changed."""

    parts: Has
    name: Name
    caller: Caller
    operation: OperationId
    generation: Generation
    plan: Plan = False

    async def answer(self, kind: protocol.ChangeKind, body: protocol.AnyRequest) -> Response:
        """The change or its preview: the same checks for both, in a thread because the store waits for its disk."""
        changes = self.parts.changes
        if self.plan:
            return answer(await asyncio.to_thread(changes.preview, kind, self.name, body))
        given = (self.name, body, self.caller.name, self.operation, self.generation)
        operation = await asyncio.to_thread(changes.change, kind, *given)
        return answer(operation, 202, {"location": f"/v1/operations/{quote(operation.id, safe='')}"})


Asked = Annotated[ChangeAsked, Depends()]


@routes.get("/v1/deployments", response_model=list[protocol.DeploymentStatus], summary="All deployments at a glance")
@needs(Role.VIEWER)
async def deployments(parts: Has) -> Response:
    """Answered from the board, in the order of their names."""
    return answer(parts.board.status().deployments)


@routes.get("/v1/deployments/{name}", response_model=protocol.DeploymentDetail, summary="One deployment")
@needs(Role.VIEWER)
async def deployment(parts: Has, name: Name) -> Response:
    """The deployment with its revisions, newest first, the live version and its gauges. The ETag is its generation."""
    status = parts.board.get("deployment", name)
    if status is None:
        raise _no_deployment(name)
    revisions = await asyncio.to_thread(parts.records.revisions, name)
    seen = parts.board.status()
    detail = protocol.DeploymentDetail(
        status=status,
        revisions=tuple(map(public, revisions)),
        version=await asyncio.to_thread(_version, parts, status.version),
        traffic=tuple(traffic for traffic in seen.traffic if traffic.deployment == name),
        replicas=tuple(gauges for gauges in seen.replica_gauges if gauges.deployment == name),
    )
    return answer(detail, headers={"etag": f'"{status.generation}"'})


@routes.get(
    "/v1/deployments/{name}/revisions", response_model=list[protocol.Revision], summary="A deployment's history"
)
@needs(Role.VIEWER)
async def revisions(parts: Has, name: Name) -> Response:
    """Every revision there ever was under this name, newest first; also after the deployment was removed."""
    found = await asyncio.to_thread(parts.records.revisions, name)
    if not found:
        raise _no_deployment(name)
    return answer([public(revision) for revision in found])


@routes.put("/v1/deployments/{name}", summary="Deploy a version", **CHANGE)
@needs(Role.OPERATOR)
async def deploy(change: Asked, body: Annotated[protocol.DeployRequest, Body(protocol.DeployRequest)]) -> Response:
    """Make a new revision that serves this version; makes the deployment where there is none."""
    return await change.answer("deploy", body)


@routes.post("/v1/deployments/{name}/rollback", summary="Roll back", **CHANGE)
@needs(Role.OPERATOR)
async def rollback(
    change: Asked, body: Annotated[protocol.RollbackRequest, Body(protocol.RollbackRequest, optional=True)]
) -> Response:
    """Make a new revision with an old spec."""
    return await change.answer("rollback", body)


@routes.post("/v1/deployments/{name}/scale", summary="Change the number of replicas", **CHANGE)
@needs(Role.OPERATOR)
async def scale(change: Asked, body: Annotated[protocol.ScaleRequest, Body(protocol.ScaleRequest)]) -> Response:
    """Run this many replicas."""
    return await change.answer("scale", body)


@routes.post("/v1/deployments/{name}/restart", summary="Restart", **CHANGE)
@needs(Role.OPERATOR)
async def restart(
    change: Asked, body: Annotated[protocol.ChangeRequest, Body(protocol.ChangeRequest, optional=True)]
) -> Response:
    """Replace every replica by a new one of the same spec, with the spec's handover."""
    return await change.answer("restart", body)


@routes.post("/v1/deployments/{name}/stop", summary="Stop serving", **CHANGE)
@needs(Role.OPERATOR)
async def stop(
    change: Asked, body: Annotated[protocol.ChangeRequest, Body(protocol.ChangeRequest, optional=True)]
) -> Response:
    """Drain and stop every replica; the deployment and its endpoint stay and answer 503."""
    return await change.answer("stop", body)


@routes.delete("/v1/deployments/{name}", summary="Remove a deployment", **CHANGE)
@needs(Role.OPERATOR)
async def remove(
    change: Asked, body: Annotated[protocol.ChangeRequest, Body(protocol.ChangeRequest, optional=True)]
) -> Response:
    """Drain and stop every replica and take the endpoint away. Its history and its versions stay."""
    return await change.answer("remove", body)


def _version(parts: Parts, version: str) -> protocol.Version | None:
    try:
        return public_version(parts.records.version(version))
    except NotFound:
        return None


def _no_deployment(name: str) -> NotFound:
    return NotFound(f"There is no deployment {name}", field="name", hint="`qd status` lists what there is.")
