"""Every error of the API as a problem document (RFC 9457) with a stable code; the only place that makes them.

What the caller sent is shown at most by the name of the field it was in, shortened: never its value, never a
traceback. Errors that only the API's edge knows, each an `AgentError`, are drawn here:

AgentError
├── BadRequest           400  not HTTP as we take it, or a token where it does not belong
├── Unauthorized         401  no token, or not this agent's
├── BadMethod            405
├── TooSlow              408  the body did not come within its deadline
├── BadMediaType         415
└── HeadersTooLarge      431
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from quarterdeck_agent.errors import AgentError, Forbidden, InvalidInput, NotFound, TooLarge
from quarterdeck_agent.protocol import PROBLEM_MEDIA_TYPE, Problem

SHOWN = 200
HANG_UP = (400, 408, 413, 431)  # what is left of such a request is not read

log = logging.getLogger(__name__)


class BadRequest(AgentError):
    code, status, title = "bad_request", 400, "The request cannot be taken"


class Unauthorized(AgentError):
    code, status, title = "unauthorized", 401, "A token is needed"


class BadMethod(AgentError):
    code, status, title = "method_not_allowed", 405, "This cannot be done with that"


class TooSlow(AgentError):
    code, status, title = "too_slow", 408, "The request took too long to arrive"


class BadMediaType(AgentError):
    code, status, title = "bad_media_type", 415, "The body is of a kind that is not taken here"


class HeadersTooLarge(AgentError):
    code, status, title = "headers_too_large", 431, "The headers are too large"


EDGE: dict[int, type[AgentError]] = {
    error.status: error
    for error in (BadRequest, Unauthorized, Forbidden, NotFound, BadMethod, TooSlow, TooLarge, BadMediaType)
}


def short(text: str) -> str:
    """Text from outside, bounded and without control characters, fit to be named in an error."""
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return clean if len(clean) <= SHOWN else clean[:SHOWN] + "…"


def document(error: AgentError) -> Problem:
    return Problem(
        type=f"urn:quarterdeck:problem:{error.code}",
        title=error.title,
        status=error.status,
        code=error.code,
        detail=error.detail,
        field=error.field,
        hint=error.hint,
        operation=error.operation,
    )


def problem(error: AgentError, headers: dict[str, str] | None = None) -> Response:
    """The response that tells `error`."""
    body = msgspec.json.encode(document(error))
    more = {"www-authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else {}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        more["retry-after"] = "5"
    if error.status in HANG_UP:
        more["connection"] = "close"
    return Response(body, error.status, {**more, **(headers or {})}, media_type=PROBLEM_MEDIA_TYPE)


def unexpected(request_id: str) -> Response:
    """The response to an error nobody foresaw; its traceback is in the log under the request's id."""
    hint = f"Look for request {request_id} in the agent's log."
    return problem(AgentError("The agent met an error it did not foresee", hint=hint))


def invalid(errors: list[Any]) -> InvalidInput:
    """What pydantic found, as one error: the first finding by its field path, and how many more there are."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    field = ""
    for part in where:
        field += f"[{part}]" if part.isdecimal() and field else f".{part}" if field else part
    message = "Unknown field" if first["type"] == "unexpected_keyword_argument" else short(str(first["msg"]))
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    hint = (
        "Leave it out; see /v1/openapi.json." if message == "Unknown field" else "See /v1/openapi.json for its shape."
    )
    return InvalidInput(f"{message}{more}", field=short(field) or None, hint=hint)


async def on_agent_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, AgentError)
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s: %s", error.code, error.detail, exc_info=error)
    return problem(error)


async def on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem(invalid(list(error.errors())))


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    known = EDGE.get(error.status_code, BadRequest)
    details = {
        NotFound: f"There is nothing at {short(request.url.path)}",
        BadMethod: f"{short(request.method)} is not possible at {short(request.url.path)}",
    }
    refused = known(details.get(known, known.title), hint="See /v1/openapi.json for what there is.")
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    return problem(refused, {"allow": headers["allow"]} if "allow" in headers else None)
