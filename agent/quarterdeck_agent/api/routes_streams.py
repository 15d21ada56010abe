"""Routes whose answers go on: the board as server-sent events, and logs."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Header, Query
from pydantic import AwareDatetime
from starlette.requests import Request
from starlette.responses import Response

from quarterdeck_agent import protocol
from quarterdeck_agent.api.access import needs
from quarterdeck_agent.api.routing import Has, Name, router, utc
from quarterdeck_agent.api.streams import Stream, begun, ndjson, watch
from quarterdeck_agent.board import HEARTBEAT
from quarterdeck_agent.errors import NotFound
from quarterdeck_agent.principal import Role
from quarterdeck_agent.protocol import HEARTBEAT_HEADER

REVISION_MAX = 2**31 - 1

routes = router("streams")


def _streams(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}}


@routes.get(
    "/v1/watch",
    response_class=Response,
    summary="Follow the host",
    responses=_streams("text/event-stream", "Events `snapshot` (HostStatus), `delta` (Delta) and `heartbeat`."),
)
@needs(Role.VIEWER)
async def watch_board(
    request: Request,
    parts: Has,
    last_event_id: Annotated[
        str | None, Header(max_length=128, description="Go on after this event, where the agent still knows it.")
    ] = None,
) -> Response:
    """Server-sent events without end: one snapshot, then deltas; a heartbeat after 5 s of silence. A reader that
    falls far behind gets a fresh snapshot instead of what it missed.
    """
    chunks = watch(parts.board, request.app.state.event_text, last_event_id)
    return Stream(chunks, parts.stop, "text/event-stream")


@routes.get(
    "/v1/deployments/{name}/logs",
    response_class=Response,
    summary="A deployment's logs",
    responses=_streams("application/x-ndjson", "One LogLine a line; an empty line is a heartbeat."),
)
@needs(Role.VIEWER)
async def logs(
    parts: Has,
    name: Name,
    revision: Annotated[int | None, Query(ge=1, le=REVISION_MAX, description="Only of this revision.")] = None,
    replica: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9._-]{1,128}$", description="Only of this one.")] = None,
    previous: Annotated[bool, Query(description="Of the revision before the live one.")] = False,
    since: Annotated[AwareDatetime | None, Query(description="Only what is newer.")] = None,
    tail: Annotated[int | None, Query(ge=0, le=100_000, description="Only the last so many lines.")] = None,
    grep: Annotated[str | None, Query(max_length=1_000, description="Only lines with this in them.")] = None,
    regex: Annotated[bool, Query(description="Take `grep` as a regular expression.")] = False,
    follow: Annotated[bool, Query(description="Go on with what comes.")] = False,
) -> Response:
    """Lines of all replicas merged by time, also of replicas that are long gone. A reader that is too slow gets a
    marker with the number of lines it missed. After 10 s without a line there is an empty one, as the header
    `Quarterdeck-Heartbeat` says: a reader that gets nothing for much longer has lost its connection.
    """
    if parts.board.get("deployment", name) is None and not await asyncio.to_thread(parts.records.revisions, name):
        raise NotFound(f"There is no deployment {name}", field="name", hint="`qd status` lists what there is.")
    lines = parts.logs.lines(
        name,
        revision=revision,
        replica=replica,
        previous=previous,
        since=utc(since, "since"),
        tail=tail,
        grep=grep,
        regex=regex,
        follow=follow,
    )
    headers = {HEARTBEAT_HEADER: f"{HEARTBEAT:g}"}
    return Stream(await begun(ndjson(lines)), parts.stop, "application/x-ndjson", headers)


STREAMED = (protocol.Delta, protocol.LogLine)
"""What the streams carry; the schema describes them though no route returns them whole."""
