"""The OpenAPI document: FastAPI's own, with the request bodies, the problem documents and the token added.

`python -m quarterdeck_agent.api.schema FILE` writes it; a test compares the committed file with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from quarterdeck_agent import protocol
from quarterdeck_agent.api.bodies import Reader
from quarterdeck_agent.api.routes_streams import STREAMED

if TYPE_CHECKING:
    from fastapi import FastAPI

TITLE = "Quarterdeck agent"
ABOUT = """The API of one host's agent: what runs there, and the changes that can be asked for.

Every change answers at once with an operation; the agent works it off. All errors are problem documents (RFC 9457)
with a stable `code`. Sizes are bytes, durations seconds, times UTC; what could not be measured is `null`."""
REFERENCE = "#/components/schemas/"
PROBLEMS = {
    "400": "Not HTTP as it is taken here.",
    "401": "No valid token.",
    "403": "The principal's role does not cover this, or a browser asks.",
    "404": "There is no such thing on this host.",
    "408": "The body came too slowly.",
    "409": "Somebody else was first, or it is in use; `operation` names the winner.",
    "413": "The body is too large.",
    "415": "The body is not of the kind that is taken here.",
    "422": "Something in the request is wrong; `field` says where, `hint` what to do.",
    "507": "The disk is full.",
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document, built once for an app."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    whole = get_openapi(title=TITLE, version=protocol.API_VERSIONS[0], description=ABOUT, routes=routes)
    schemas = whole["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for answered in (protocol.Problem, *STREAMED):
        schemas.update(_definitions(answered, mode="serialization"))
    for route in routes:
        for method in route.methods or ():
            _complete(whole["paths"][route.path_format][method.lower()], route, schemas)
    whole["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "The token beside the agent's socket."}
    }
    whole["security"] = [{"token": []}]
    return whole


def _complete(operation: dict[str, Any], route: APIRoute, schemas: dict[str, Any]) -> None:
    operation["operationId"] = route.name
    reader = next((d.call for d in route.dependant.dependencies if isinstance(d.call, Reader)), None)
    if reader is not None:
        schemas.update(_definitions(reader.body_type, mode="validation"))
        content = {"application/json": {"schema": {"$ref": REFERENCE + reader.body_type.__name__}}}
        operation["requestBody"] = {"required": not reader.optional, "content": content}
    problem = {"application/problem+json": {"schema": {"$ref": REFERENCE + "Problem"}}}
    for status in _possible(route, body="requestBody" in operation):
        operation["responses"][status] = {"description": PROBLEMS[status], "content": problem}
    operation["responses"]["default"] = {"description": "Any other error.", "content": problem}
    if route.path == "/healthz":
        operation["security"] = []


def _possible(route: APIRoute, *, body: bool) -> list[str]:
    changes = bool((route.methods or set()) - {"GET"})
    some = {"404": "{" in route.path or route.path == "/v1/series", "408": body, "409": changes, "413": body}
    some |= {"415": body, "507": changes}
    return [status for status in PROBLEMS if some.get(status, True)]


def _definitions(wire: type[Any], *, mode: Any) -> dict[str, Any]:
    """`wire` and all it is made of. What requests and answers share differs in what is required, hence `Input`."""
    built = TypeAdapter(wire).json_schema(mode=mode, ref_template=REFERENCE + "{model}")
    inner = built.pop("$defs", {})
    if mode == "serialization":
        return {wire.__name__: built, **inner}
    text = json.dumps({wire.__name__: built, **inner})
    for name in inner:
        text = text.replace(f'"{REFERENCE}{name}"', f'"{REFERENCE}{name}Input"').replace(
            f'"{name}": {{"', f'"{name}Input": {{"'
        )
    renamed: dict[str, Any] = json.loads(text)
    return renamed


def written(app: FastAPI) -> str:
    """The document as it is committed."""
    return json.dumps(document(app), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(argv: list[str]) -> int:
    from quarterdeck_agent.api.app import build
    from quarterdeck_agent.api.ports import Parts

    class Nobody:
        def principal(self, token: bytes, peer: object) -> None:
            return None

    parts: Any = object.__new__(Parts)
    Path(argv[0]).write_text(written(build(parts, Nobody())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
