"""Who is let in: every route, every kind of caller, and what a browser could send."""

from __future__ import annotations

import asyncio
import re
import socket

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from quarterdeck_agent.api import app as app_module
from quarterdeck_agent.api.access import LocalToken, Peer, needed
from quarterdeck_agent.api.app import build
from quarterdeck_agent.api.serve import peer_of
from quarterdeck_agent.principal import Principal, Role
from tests.agent.api.fakes import TOKEN, Running, parts

OPEN = "/healthz"


def routes() -> list[tuple[str, str, Role]]:
    found = []
    for route in build(parts(), LocalToken(TOKEN)).routes:
        assert isinstance(route, APIRoute)
        role = needed(route.endpoint)
        assert role is not None
        path = re.sub(r"\{sha256\}", "a" * 64, route.path)
        path = re.sub(r"\{\w+\}", "there", path)
        found += [(method, path, role) for method in sorted(route.methods or ())]
    return found


def asked(app: FastAPI, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    """What the app answers where there is no socket."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(ask())


def problem(response: httpx.Response) -> dict[str, object]:
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, object] = response.json()
    assert document["status"] == response.status_code
    assert document["code"]
    assert document["title"]
    assert document["detail"]
    return document


@pytest.mark.parametrize(("method", "path", "role"), routes())
@pytest.mark.parametrize("token", [None, "qd_", "qd_wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper(), "ü"], ids=repr)
def test_no_route_but_health_answers_without_the_token(
    api: Running, method: str, path: str, role: Role, token: str | None
) -> None:
    headers = {} if token is None else {b"authorization": f"Bearer {token}".encode()}
    response = api.client(token=None).request(method, path, headers=headers)
    if path == OPEN:
        assert response.status_code == 200
    else:
        assert response.status_code == 401
        assert problem(response)["code"] == "unauthorized"
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path", "role"), routes())
def test_each_route_is_closed_to_every_role_below_its_own(method: str, path: str, role: Role) -> None:
    class Fixed:
        def __init__(self, given: Role) -> None:
            self.given = given

        def principal(self, token: bytes, peer: Peer | None) -> Principal:
            return Principal("somebody", self.given)

    for given in Role:
        if path == "/v1/watch":
            continue
        response = asked(build(parts(), Fixed(given)), method, path, {"authorization": "Bearer x"})
        assert (response.status_code == 403) == (not given.covers(role)), (given, response.text)


def test_roles_cover_those_below_them_and_nothing_else() -> None:
    assert [(a, b) for a in Role for b in Role if a.covers(b)] == [
        (Role.VIEWER, Role.VIEWER),
        (Role.OPERATOR, Role.VIEWER),
        (Role.OPERATOR, Role.OPERATOR),
        (Role.ADMIN, Role.VIEWER),
        (Role.ADMIN, Role.OPERATOR),
        (Role.ADMIN, Role.ADMIN),
    ]


def test_an_app_with_a_route_that_declares_no_role_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from quarterdeck_agent.api.routing import router

    loose = router("loose")

    @loose.get("/v1/loose")
    async def forgotten() -> None: ...

    plain = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    plain.get("/v1/plain")(forgotten)
    for module in (SimpleNamespace(routes=loose), SimpleNamespace(routes=plain.router)):
        monkeypatch.setattr(app_module, "MODULES", (module,))
        with pytest.raises(TypeError, match="declares no role"):
            build(parts(), LocalToken(TOKEN))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.test"}, 403),
        ({"host": "localhost.evil.test"}, 403),
        ({"host": "evil.test:80@localhost"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://localhost"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 403),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": TOKEN}, 401),
        ({"content-encoding": "gzip"}, 415),
        ({"x-big": "x" * 40_000}, 431),
    ],
)
@pytest.mark.parametrize("path", ["/v1/status", "/v1/watch", "/v1/nothing"])
def test_what_a_browser_or_a_stranger_sends_is_refused(
    api: Running, headers: dict[str, str], status: int, path: str
) -> None:
    response = api.client().get(path, headers=headers)
    assert response.status_code == status
    problem(response)


def test_two_host_headers_or_none_are_refused(api: Running) -> None:
    for lines in (b"host: localhost\r\nhost: localhost\r\n", b""):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(5)
            raw.connect(str(api.path))
            raw.sendall(b"GET /v1/status HTTP/1.1\r\n" + lines + b"\r\n")
            assert raw.recv(65536).split(b" ")[1] == b"400"


@pytest.mark.parametrize(
    "query", [f"token={TOKEN}", "access_token=x", f"name={TOKEN}", "%74oken=x", "a=1&TOKEN=x", "api_key=x"]
)
def test_a_token_in_the_address_is_refused_and_not_repeated(api: Running, query: str) -> None:
    response = api.client().get(f"/v1/status?{query}")
    assert response.status_code == 400
    assert TOKEN not in response.text


def test_history_shows_the_user_at_the_other_end_of_the_socket(api: Running) -> None:
    import os
    import pwd

    made = api.client().put("/v1/deployments/d", json={"version": "digits:1"}).json()
    assert made["by"] == pwd.getpwuid(os.geteuid()).pw_name


def test_a_tcp_peer_has_no_credentials() -> None:
    with socket.socket(socket.AF_INET) as tcp:
        assert peer_of(tcp) is None


def test_health_is_open_on_a_unix_socket_only() -> None:
    assert asked(build(parts(), LocalToken(TOKEN)), "GET", OPEN, {}).status_code == 401
