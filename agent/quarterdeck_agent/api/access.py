"""Who is let in, and what for: the token, the peer of the socket, and the role each route declares.

Denied by default: a request without a principal never reaches a route, and a route that declares no role is refused
when the app is built and again when it is called.
"""

from __future__ import annotations

import hashlib
import hmac
import pwd
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from fastapi.dependencies.models import Dependant
from starlette.requests import Request

from quarterdeck_agent.api.problems import short
from quarterdeck_agent.errors import Forbidden, InvalidInput
from quarterdeck_agent.principal import Principal, Role

PEER = "quarterdeck.peer"
PRINCIPAL = "quarterdeck.principal"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Peer(NamedTuple):
    """The process at the other end of the Unix socket, as the kernel tells (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


class Gatekeeper(Protocol):
    """Turns a token into a principal; `None` lets nobody in."""

    def principal(self, token: bytes, peer: Peer | None) -> Principal | None: ...


class LocalToken:
    """The one token beside the socket. Whoever can read it is the host's administrator; history shows the user."""

    def __init__(self, token: str) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()

    def principal(self, token: bytes, peer: Peer | None) -> Principal | None:
        if not hmac.compare_digest(hashlib.sha256(token).digest(), self._digest):
            return None
        return Principal(user_name(peer), Role.ADMIN)


def user_name(peer: Peer | None) -> str:
    if peer is None:
        return "local"
    try:
        return pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        return f"uid {peer.uid}"


def needs(role: Role) -> Callable[[Endpoint], Endpoint]:
    """Declare the role that an endpoint asks for."""

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.__dict__["needs"] = role
        return endpoint

    return declare


def needed(endpoint: object) -> Role | None:
    """The role an endpoint declared."""
    return getattr(endpoint, "needs", None)


def _query_names(dependant: Dependant) -> set[str]:
    """The query parameters of an endpoint and of all that it depends on."""
    own = {parameter.alias for parameter in dependant.query_params}
    return own.union(*map(_query_names, dependant.dependencies))


def authorise(request: Request) -> Principal:
    """Let the request's principal through to its route, or raise `Forbidden`; also refuse unknown query parameters,
    since a mistyped `?plan=true` would otherwise make the change it was to preview.
    """
    role = needed(request.scope.get("endpoint"))
    principal = request.scope.get(PRINCIPAL)
    if role is None or (not isinstance(principal, Principal) and request.url.path != "/healthz"):
        raise Forbidden("This is open to nobody")
    if isinstance(principal, Principal) and not principal.role.covers(role):
        raise Forbidden(f"This needs the role {role}; {short(principal.name)} is {principal.role}")
    known = _query_names(request.scope["route"].dependant)
    for name in request.query_params:
        if name not in known:
            hint = "It takes: " + ", ".join(sorted(known)) + "." if known else "It takes none."
            raise InvalidInput("Unknown query parameter", field=short(name), hint=hint)
    return principal if isinstance(principal, Principal) else Principal("nobody", Role.VIEWER)
