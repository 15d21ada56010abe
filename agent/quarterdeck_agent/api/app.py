"""The API as one ASGI application, built from the parts it is given. It listens nowhere; see `serve.py`."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from quarterdeck_agent.api import (
    problems,
    routes_deployments,
    routes_gpus,
    routes_operations,
    routes_status,
    routes_streams,
    routes_versions,
    schema,
)
from quarterdeck_agent.api.access import Gatekeeper, authorise, needed
from quarterdeck_agent.api.guard import Bounds, Guard
from quarterdeck_agent.api.ports import Parts
from quarterdeck_agent.api.streams import EventText
from quarterdeck_agent.errors import AgentError

MODULES = (routes_status, routes_deployments, routes_versions, routes_gpus, routes_operations, routes_streams)


def build(parts: Parts, gatekeeper: Gatekeeper, bounds: Bounds | None = None) -> FastAPI:
    """The application. Raises `TypeError` when a route would be open to anybody."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.parts = parts
    app.state.event_text = EventText()
    for module in MODULES:
        app.router.routes.extend(module.routes.routes)
    _check_guarded(app)
    app.add_exception_handler(AgentError, problems.on_agent_error)
    app.add_exception_handler(RequestValidationError, problems.on_invalid)
    app.add_exception_handler(HTTPException, problems.on_http_error)
    app.add_middleware(Guard, gatekeeper=gatekeeper, bounds=bounds or Bounds())
    app.openapi = lambda: schema.document(app)  # type: ignore[method-assign]
    return app


def _check_guarded(app: FastAPI) -> None:
    for route in app.routes:
        asks = isinstance(route, APIRoute) and any(d.call is authorise for d in route.dependant.dependencies)
        if not asks or needed(getattr(route, "endpoint", None)) is None:
            raise TypeError(f"The route {getattr(route, 'path', route)} declares no role: it would be open to anybody")
