"""Routes that tell how the host is: hello, health, status, runtimes, doctor, series and metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import AwareDatetime
from starlette.requests import Request
from starlette.responses import Response

from quarterdeck_agent import protocol
from quarterdeck_agent.api.access import needs
from quarterdeck_agent.api.answers import answer
from quarterdeck_agent.api.routing import Has, router, utc
from quarterdeck_agent.errors import NotFound
from quarterdeck_agent.principal import Role

CAPABILITIES = ("watch", "logs", "push", "plan")
LONGEST_STEP = 30 * 86_400
MOST_POINTS = 50_000

routes = router("host")


@routes.get("/healthz", response_model=dict[str, str], summary="Whether the agent answers")
@needs(Role.VIEWER)
async def healthz() -> Response:
    """Always `{"status": "ok"}` while the agent answers at all. The one route that the local socket opens without a
    token; it tells nothing of the host.
    """
    return answer({"status": "ok"})


@routes.get("/v1/hello", response_model=protocol.Hello, summary="Who answers, and in which versions")
@needs(Role.VIEWER)
async def hello(parts: Has) -> Response:
    """The first thing a console asks. This shape only ever grows."""
    info = parts.board.status().info
    return answer(
        protocol.Hello(
            product="quarterdeck",
            agent_version=info.agent_version,
            api_versions=protocol.API_VERSIONS,
            host=info.name,
            instance=info.instance,
            started_at=info.started_at,
            capabilities=CAPABILITIES,
        )
    )


@routes.get("/v1/status", response_model=protocol.HostStatus, summary="Everything last seen on the host")
@needs(Role.VIEWER)
async def status(parts: Has) -> Response:
    """Answered from the board: what the engine, the gateway and the sampler last told, never asked anew."""
    return answer(parts.board.status())


@routes.get("/v1/runtimes", response_model=list[protocol.Runtime], summary="The serving runtimes of this host")
@needs(Role.VIEWER)
async def runtimes(parts: Has) -> Response:
    """The catalogue: the built-in entries and the user's own."""
    return answer(parts.catalogue.list())


@routes.get("/v1/doctor", response_model=list[protocol.Check], summary="Check the host")
@needs(Role.VIEWER)
async def doctor(parts: Has) -> Response:
    """Looks at host, engine, gateway, store, disk, clock and GPUs; each finding with its mend."""
    return answer(tuple(await parts.doctor()))


@routes.get("/v1/doctor/gpus", response_model=list[protocol.Check], summary="Have torch try each GPU")
@needs(Role.OPERATOR)
async def gpu_doctor(parts: Has) -> Response:
    """Multiplies matrices and copies memory on one GPU after the other, about ten seconds each: right, and how fast."""
    return answer(tuple(await parts.gpu_doctor()))


@routes.get(
    "/v1/series",
    response_model=protocol.Series | list[protocol.SeriesName],
    summary="One gauge over time, or which there are",
)
@needs(Role.VIEWER)
async def series(
    parts: Has,
    name: Annotated[
        str | None,
        Query(max_length=64, pattern=r"^[a-z0-9_.]+$", description="Such as `host.cpu`; without it all are listed."),
    ] = None,
    key: Annotated[str, Query(max_length=256, description="Whose: a replica's id, `deployment/revision`, a GPU.")] = "",
    since: Annotated[AwareDatetime | None, Query(description="Only what is newer; an hour ago.")] = None,
    step: Annotated[float | None, Query(ge=0.1, le=LONGEST_STEP, description="Seconds from sample to sample.")] = None,
    points: Annotated[int | None, Query(ge=2, le=MOST_POINTS, description="At most so many samples.")] = None,
) -> Response:
    """Samples of one gauge, oldest first. The last hour comes as it was sampled, what is older in whole minutes; `step`
    and `points` thin it, and beyond the hour there are 1,000 samples at most unless `points` says another number. A
    sample that stands for a longer time has its mean as `value` and its maximum as `max`. A gap is a `null`, never a
    zero.
    """
    if name is None:
        return answer(await parts.series.names())
    found = await parts.series.series(name, key, utc(since, "since"), step=step, points=points)
    if found is None:
        raise NotFound("There is no such series", field="name", hint="GET /v1/series without a name lists all.")
    return answer(found)


@routes.get("/metrics", response_class=Response, summary="Figures for Prometheus")
@needs(Role.VIEWER)
async def metrics(parts: Has) -> Response:
    """Text exposition format 0.0.4."""
    return Response(parts.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


@routes.get("/v1/openapi.json", response_model=dict[str, object], summary="This document")
@needs(Role.VIEWER)
async def openapi(request: Request) -> Response:
    """The OpenAPI document of the agent's API."""
    return answer(request.app.openapi())
