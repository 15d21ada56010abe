"""Routes of versions and of the blobs they are made of: plan a push, send the bytes, make the version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from quarterdeck_agent import protocol
from quarterdeck_agent.api.access import needs
from quarterdeck_agent.api.answers import answer
from quarterdeck_agent.api.bodies import Body
from quarterdeck_agent.api.routing import Caller, Digest, Has, OperationId, Ref, router
from quarterdeck_agent.bundle import public_version
from quarterdeck_agent.errors import InvalidInput, TooLarge
from quarterdeck_agent.principal import Role

SIZE_MAX = 2**53  # what a JSON number carries exactly

routes = router("versions")

Push = Annotated[protocol.PushRequest, Body(protocol.PushRequest)]


@routes.get("/v1/versions", response_model=list[protocol.Version], summary="All versions on the host")
@needs(Role.VIEWER)
async def versions(parts: Has) -> Response:
    """Newest first."""
    return answer([public_version(each) for each in await asyncio.to_thread(parts.records.versions)])


@routes.get("/v1/versions/{ref}", response_model=protocol.Version, summary="One version")
@needs(Role.VIEWER)
async def version(parts: Has, ref: Ref) -> Response:
    """The version with its files and its `model.toml` as it was read."""
    return answer(public_version(await asyncio.to_thread(parts.records.version, ref)))


@routes.post("/v1/pushes", response_model=protocol.PushPlan, summary="Plan a push")
@needs(Role.OPERATOR)
async def plan_push(parts: Has, body: Push) -> Response:
    """Checks the bundle and tells which bytes are still missing. Writes nothing."""
    plan = await asyncio.to_thread(parts.pushes.plan, body)
    return answer(replace(plan, version=public_version(plan.version)) if plan.version else plan)


@routes.post(
    "/v1/versions", response_model=protocol.Version, status_code=201, summary="Make a version of what was sent"
)
@needs(Role.OPERATOR)
async def make_version(parts: Has, caller: Caller, operation: OperationId, body: Push) -> Response:
    """Possible once every blob is there whole and verified; the same bundle again returns the first version."""
    made = await asyncio.to_thread(parts.pushes.commit, body, caller.name, operation)
    return answer(public_version(made), 201, {"location": f"/v1/versions/{made.id}"})


@routes.delete("/v1/versions/{ref}", response_class=Response, status_code=204, summary="Remove a version")
@needs(Role.OPERATOR)
async def remove_version(parts: Has, caller: Caller, operation: OperationId, ref: Ref) -> Response:
    """Refused with 409 while a deployment uses it or could soon be rolled back to it."""
    await asyncio.to_thread(parts.pushes.remove, ref, caller.name, operation)
    return Response(status_code=204)


@routes.get("/v1/blobs/{sha256}", response_model=protocol.BlobWanted, summary="How much of a blob is there")
@needs(Role.OPERATOR)
async def blob(
    parts: Has,
    sha256: Digest,
    size: Annotated[int | None, Query(ge=0, le=SIZE_MAX, description="The blob's whole size in bytes.")] = None,
) -> Response:
    """Where to go on: send the bytes from `offset` on; `offset` equal to `size` means that it is there whole. Without
    `size` the answer's own tells how many bytes are there.
    """
    offset = await asyncio.to_thread(parts.blobs.offset, sha256)
    return answer(protocol.BlobWanted(sha256, offset if size is None else size, offset))


@routes.put(
    "/v1/blobs/{sha256}",
    response_model=protocol.BlobWanted,
    summary="Send bytes of a blob",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "The bytes from `offset` on, up to the end or as far as the connection lasts.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
@needs(Role.OPERATOR)
async def send_blob(
    request: Request,
    parts: Has,
    sha256: Digest,
    size: Annotated[int, Query(ge=0, le=SIZE_MAX, description="The blob's whole size in bytes.")],
    offset: Annotated[int, Query(ge=0, le=SIZE_MAX, description="Where in the blob the body begins.")] = 0,
) -> Response:
    """The body goes to disk as it comes. What arrived before a cut stays: ask where to go on and send the rest. When
    the last byte is there the blob is verified; wrong bytes are refused and thrown away.
    """
    if size > parts.upload_size:
        raise TooLarge(f"The blob has {size} bytes; this host takes {parts.upload_size}", field="size")
    if offset > size:
        raise InvalidInput("The offset lies behind the end", field="offset", hint=f"At most {size}.")
    await parts.blobs.write(sha256, size, offset, _chunks(request, size - offset))
    return answer(protocol.BlobWanted(sha256, size, await asyncio.to_thread(parts.blobs.offset, sha256)))


async def _chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes off the socket, some 200 KiB at a time, at most `limit` bytes in all."""
    async for piece in request.stream():
        limit -= len(piece)
        if limit < 0:
            raise TooLarge("The body has more bytes than the blob still lacks", field="size")
        if piece:
            yield piece
