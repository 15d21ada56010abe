"""Request bodies and headers, read strictly: JSON only, no unknown field, no type bent into another.

FastAPI's own reading would take `"3"` for 3 and `true` for 1, so a body is validated from its bytes in strict mode.
"""

from __future__ import annotations

import math
import secrets
from typing import Annotated, Any

import pydantic_core
from fastapi import Depends, Header
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from quarterdeck_agent.api.problems import BadMediaType, invalid
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.protocol import GENERATION_HEADER, OPERATION_HEADER

TEXT_MAX = 64 * 2**10
INTEGER_MAX = 2**63 - 1
OPERATION_ID = r"^[A-Za-z0-9._:@+=~-]{1,64}$"
GENERATION = r'^(\*|"[0-9]{1,18}"|[0-9]{1,18})$'


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


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def decode(body_type: type[Any], body: bytes) -> Any:
    """The value in `body`. Raises `InvalidInput` naming the field."""
    adapter = _adapters.get(body_type) or _adapters.setdefault(body_type, TypeAdapter(body_type))
    try:
        _bounded(pydantic_core.from_json(body, allow_inf_nan=False), "")
    except ValueError as error:
        raise InvalidInput(f"The body is not JSON: {str(error)[:100]}", hint="Send one JSON object.") from None
    try:
        return adapter.validate_json(body, strict=True)
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
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput("The number is too large", field=where[:200])
    elif isinstance(value, str) and len(value) > TEXT_MAX:
        raise InvalidInput("The text is too long", field=where[:200], hint=f"At most {TEXT_MAX} characters.")


def operation_id(
    given: Annotated[
        str | None,
        Header(
            alias=OPERATION_HEADER,
            pattern=OPERATION_ID,
            description="Names this change: repeated with the same id, the first result returns and nothing changes.",
        ),
    ] = None,
) -> str:
    """The caller's operation id, or a new one."""
    return f"op-{secrets.token_hex(8)}" if given is None else given


def generation(
    given: Annotated[
        str | None,
        Header(
            alias=GENERATION_HEADER,
            pattern=GENERATION,
            description="The deployment's generation that the caller saw; when it is another by now: 409.",
        ),
    ] = None,
) -> int | None:
    """The generation the change is meant for; `None` for any."""
    return None if given is None or given == "*" else int(given.strip('"'))
