"""What every request passes before it reaches a route, as plain ASGI so that streams stay streams.

`Guard` refuses what a browser or a stranger could send (Host, Origin, token in the query, no token) before a byte of
the body is read; then it bounds the body's size and idle time, names the request and catches what nobody foresaw.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quarterdeck_agent.api.access import PEER, PRINCIPAL, Gatekeeper, Peer
from quarterdeck_agent.api.problems import (
    BadMediaType,
    BadRequest,
    HeadersTooLarge,
    TooSlow,
    Unauthorized,
    problem,
    unexpected,
)
from quarterdeck_agent.errors import AgentError, Forbidden, TooLarge

HOSTS = frozenset({"localhost", "agent", "quarterdeck", "127.0.0.1", "[::1]"})
HEADERS_SIZE = 32 * 2**10
ADDRESS_SIZE = 8 * 2**10
OPEN_PATHS = frozenset({"/healthz"})
UPLOADS = "/v1/blobs/"
TOKEN_IN_QUERY = re.compile(
    rb"(^|&)((access_|auth_|api_)?(token|authorization)|(access_|auth_|api_)key)=|qd_[A-Za-z0-9_-]{43}", re.IGNORECASE
)
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much and how slowly a request may come: bytes of a body that is no upload, seconds between its parts."""

    body_size: int = 2**20
    body_idle: float = 60.0
    hosts: frozenset[str] = HOSTS


class Guard:
    """The one middleware around the app."""

    def __init__(self, app: ASGIApp, gatekeeper: Gatekeeper, bounds: Bounds) -> None:
        self._app = app
        self._gatekeeper = gatekeeper
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send, _request_id(scope))
        try:
            self._admit(scope)
            await self._app(scope, _Body(receive, self._limit(scope), self._bounds.body_idle), answer)
        except AgentError as error:
            await answer.instead(problem(error), scope, receive)
        except ClientDisconnect:
            log.debug("request %s: the client went away", answer.request_id)
        except Exception:
            log.exception("request %s failed: %s %s", answer.request_id, scope["method"], scope["path"])
            await answer.instead(unexpected(answer.request_id), scope, receive)

    def _admit(self, scope: Scope) -> None:
        """Put the principal into the scope, or raise what the request is refused with."""
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > HEADERS_SIZE:
            raise HeadersTooLarge(
                f"The headers have more than {HEADERS_SIZE} bytes", hint="Send fewer or shorter ones."
            )
        if len(scope["raw_path"]) + len(scope["query_string"]) > ADDRESS_SIZE:
            raise BadRequest(f"The address has more than {ADDRESS_SIZE} bytes", hint="Send a shorter one.")
        _check_origin(headers, self._bounds.hosts)
        if TOKEN_IN_QUERY.search(unquote_to_bytes(scope["query_string"])):
            hint = "Send it as `Authorization: Bearer …`, and replace it: it may stand in somebody's log."
            raise BadRequest("A token must not stand in the address", hint=hint)
        if scope["path"] in OPEN_PATHS and PEER in scope:
            return
        scope[PRINCIPAL] = self._authenticate(headers, cast("Peer | None", scope.get(PEER)))
        _check_body_headers(headers, self._limit(scope))

    def _authenticate(self, headers: Headers, peer: Peer | None) -> object:
        hint = "Send `Authorization: Bearer <token>`; the local token lies beside the agent's socket."
        given = headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        principal = self._gatekeeper.principal(token.strip().encode(), peer) if scheme.lower() == "bearer" else None
        if principal is None:
            raise Unauthorized("There is no valid token with the request", hint=hint)
        return principal

    def _limit(self, scope: Scope) -> int | None:
        """An upload bounds itself by the size it names."""
        upload = scope["method"] == "PUT" and scope["path"].startswith(UPLOADS)
        return None if upload else self._bounds.body_size


class _Body:
    """`receive` with a size and a deadline: raises instead of handing on too much, or of waiting too long."""

    def __init__(self, receive: Receive, limit: int | None, idle: float) -> None:
        self._receive = receive
        self._limit = limit
        self._idle = idle
        self._seen = 0
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:
            # What is left to come is the end of the connection, and a stream waits for that as long as it likes.
            return await self._receive()
        try:
            async with asyncio.timeout(self._idle):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(f"Nothing of the body came for {self._idle:g} s", hint="Send it again.") from None
        self._whole = not message.get("more_body", False)
        self._seen += len(message.get("body", b""))
        if self._limit is not None and self._seen > self._limit:
            raise _too_large(self._limit)
        return message


class _Answer:
    """`send` that adds the headers every answer has, and knows whether an answer has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self._begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers.setdefault("cache-control", "no-store")
            headers["x-content-type-options"] = "nosniff"
        await self._send(message)

    async def instead(self, response: ASGIApp, scope: Scope, receive: Receive) -> None:
        """Answer with `response` where nothing was answered yet; a broken stream can only be cut."""
        if not self._begun:
            await response(scope, receive, self)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _check_origin(headers: Headers, hosts: frozenset[str]) -> None:
    """No browser talks to the agent: that is how pages on the operator's machine reach a loopback port (rebinding)."""
    given = headers.getlist("host")
    name = re.sub(r":\d{1,5}$", "", given[0].lower()) if len(given) == 1 else None
    if name is None:
        raise BadRequest("There must be one Host header", hint="Send `Host: localhost`.")
    if name not in hosts:
        raise Forbidden("That Host is not this agent's", hint="Send `Host: localhost`.")
    if "origin" in headers or "sec-fetch-site" in headers or "sec-fetch-mode" in headers:
        raise Forbidden("Browsers are not served", hint="Use `qd`, or a client that sends no Origin.")


def _check_body_headers(headers: Headers, limit: int | None) -> None:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise BadMediaType("Compressed bodies are not taken", hint="Send the body as it is, without Content-Encoding.")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise BadRequest("Content-Length is not a number")
    if limit is not None and (len(length) > 15 or int(length) > limit):
        raise _too_large(limit)


_HINT = "Model files go to /v1/blobs/{sha256}; where a bundle has very many files, raise the setting api.body_size."


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body has more than {limit} bytes", hint=_HINT)
