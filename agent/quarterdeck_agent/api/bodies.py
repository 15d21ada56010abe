"""Request bodies and headers, read strictly: JSON only, no unknown field, no type bent into another.

FastAPI's own reading would take `"3"` for 3 and `true` for 1, so a body is validated from its bytes in strict mode.
"""

from __future__ import annotations

import re
import secrets
from functools import cache
from typing import Any

import pydantic_core
from fastapi import Depends, Header
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from quarterdeck_agent.api.problems import BadMediaType, invalid
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.protocol import GENERATION_HEADER, OPERATION_HEADER

TEXT_MAX = 64 * 2**10
INTEGER_MAX = 2**63 - 1
OPERATION_ID = re.compile(r"[!-~]{1,64}")


class Reader:
    """Reads one class of request; the schema finds `body_type` on it."""

    def __init__(self, body_type: type[Any], *, optional: bool) -> None:
        self.body_type = body_type
        self.optional = optional

    async def __call__(self, request: Request) -> Any:
        body = await request.body()
        if not body and self.optional:
            return self.body_type()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise BadMediaType("The body must be JSON", hint="Send `Content-Type: application/json`.")
        return decode(self.body_type, body)


def Body(body_type: type[Any], *, optional: bool = False) -> Any:  # noqa: N802  reads as FastAPI's own markers do
    """A parameter that is the request's body as `body_type`; an optional one may be empty and has its defaults."""
    return Depends(Reader(body_type, optional=optional), use_cache=False)


@cache
def _adapter(body_type: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(body_type)


def decode(body_type: type[Any], body: bytes) -> Any:
    """The value in `body`. Raises `InvalidInput` naming the field."""
    try:
        _bounded(pydantic_core.from_json(body, allow_inf_nan=False), "")
    except ValueError as error:
        raise InvalidInput(f"The body is not JSON: {str(error)[:100]}", hint="Send one JSON object.") from None
    try:
        return _adapter(body_type).validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid(list(error.errors(include_url=False, include_input=False, include_context=False))) from None


def _bounded(value: Any, where: str) -> None:
    """Refuse what no field can mean and what some later hand could stumble over."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _bounded(key, where)
            _bounded(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _bounded(inner, f"{where}[{index}]")
    elif isinstance(value, int) and abs(value) > INTEGER_MAX:
        raise InvalidInput("The number is too large", field=where[:200], hint=f"At most {INTEGER_MAX}.")
    elif isinstance(value, str) and len(value) > TEXT_MAX:
        raise InvalidInput("The text is too long", field=where[:200], hint=f"At most {TEXT_MAX} characters.")


def operation_id(
    given: str | None = Header(
        None,
        alias=OPERATION_HEADER,
        description="Names this change. Repeated with the same id, the first result returns.",
    ),
) -> str:
    """The caller's operation id, or a new one."""
    if given is None:
        return f"op-{secrets.token_hex(8)}"
    if not OPERATION_ID.fullmatch(given):
        raise InvalidInput("Not an operation id", field=OPERATION_HEADER, hint="1 to 64 printable ASCII characters.")
    return given


def generation(
    given: str | None = Header(
        None, alias=GENERATION_HEADER, description="The deployment's generation that the caller saw; another means 409."
    ),
) -> int | None:
    """The generation the change is meant for; `None` for any."""
    if given is None or given.strip() == "*":
        return None
    match = re.fullmatch(r'"?(\d{1,18})"?', given.strip(), re.ASCII)
    if match is None:
        raise InvalidInput("Not a generation", field=GENERATION_HEADER, hint='Send a number as in the status: "3".')
    return int(match[1])
