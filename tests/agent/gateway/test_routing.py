"""Routing as a pure function: what each deployment gets, and that no name reaches into another's requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarterdeck_agent.drivers.base import RoutingResources
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.protocol import Limits
from quarterdeck_agent.routing import Route, Target, cluster_name, resources, split_cluster

A, B = ("10.0.0.1", 8000), ("10.0.0.2", 8000)


def build(*routes: Route, **options: Any) -> RoutingResources:
    settings: dict[str, Any] = {"host": "127.0.0.1", "port": 8080, "access_log": "/a.log", "placeholder": "/none.sock"}
    return resources(routes, **(settings | options))


def serving(name: str = "digits", revision: int = 1, **options: Any) -> Route:
    return Route(name, revision, clusters=(Target(revision, (A,)),), **options)


def hosts(built: RoutingResources) -> list[dict[str, Any]]:
    config: Any = built.routes[0]
    found: list[dict[str, Any]] = config["virtual_hosts"]
    return found


def lb_endpoints(built: RoutingResources) -> dict[str, list[Any]]:
    assignments: Any = built.endpoints
    return {item["cluster_name"]: item["endpoints"][0]["lb_endpoints"] for item in assignments}


def pick(built: RoutingResources, host: str, path: str) -> dict[str, Any]:
    """The route Envoy would take: exact domain, longest `name.*`, then `*`; the first route that matches the path."""
    domains = {domain: entry for entry in hosts(built) for domain in entry["domains"]}
    prefixes = [d for d in domains if d.endswith(".*") and host.startswith(d[:-1]) and len(host) > len(d) - 1]
    chosen = domains.get(host) or (domains[max(prefixes, key=len)] if prefixes else domains["*"])
    for route in chosen["routes"]:
        match = route["match"]
        if match.get("path") == path or path.startswith(match.get("prefix", "\n")):
            found: dict[str, Any] = route
            return found
    raise AssertionError("no route at all")


def goes_to(built: RoutingResources, path: str, host: str = "gateway.test") -> str | int:
    route = pick(built, host, path)
    answer: str | int = route["route"]["cluster"] if "route" in route else route["direct_response"]["status"]
    return answer


@pytest.mark.parametrize(
    ("host", "path", "to"),
    [
        ("gw", "/digits", "digits.1"),
        ("gw", "/digits/", "digits.1"),
        ("gw", "/digits/v2/x", "digits.1"),
        ("gw", "/digits2", "digits2.7"),
        ("gw", "/digits2/v2/x", "digits2.7"),
        ("gw", "/digits.v2/x", "digits.v2.3"),
        ("gw", "/digits.v/x", 404),
        ("gw", "/digit", 404),
        ("gw", "/", 404),
        ("gw", "/DIGITS/x", 404),
        ("digits", "/digits2/x", "digits.1"),
        ("digits", "/", "digits.1"),
        ("digits.example.org", "/x", "digits.1"),
        ("digits2.example.org", "/x", "digits2.7"),
        ("digits.v2", "/x", "digits.v2.3"),
        ("digits.v2.example.org", "/x", "digits.v2.3"),
        ("digits.v22.example.org", "/x", "digits.1"),
        ("xdigits", "/x", 404),
    ],
)
def test_a_request_goes_to_the_deployment_it_names(host: str, path: str, to: str | int) -> None:
    built = build(serving("digits"), serving("digits2", 7), serving("digits.v2", 3))

    assert goes_to(built, path, host) == to


@pytest.mark.parametrize("name", ["127", "127.0", "10", "localhost", "gpu1", "gpu1.lan"])
def test_a_deployment_named_like_this_host_does_not_take_the_hosts_requests(name: str) -> None:
    built = build(serving(name), serving("digits"), own_names=["gpu1.lan"])

    for host in ("127.0.0.1", "10.0.0.7", "localhost", "gpu1.lan"):
        assert goes_to(built, "/digits/x", host) == "digits.1"
        assert goes_to(built, f"/{name}/x", host) == f"{name}.1"


def test_by_path_the_name_is_taken_off_and_by_host_the_path_is_left_alone() -> None:
    built = build(serving())

    assert pick(built, "gw", "/digits/x")["route"]["prefix_rewrite"] == "/"
    assert pick(built, "gw", "/digits")["route"]["prefix_rewrite"] == "/"
    assert "prefix_rewrite" not in pick(built, "digits", "/x")["route"]


@pytest.mark.parametrize(
    ("route", "code"),
    [
        (Route("digits", 1, clusters=(Target(1, (A,)),), stopped=True), "stopped"),
        (Route("digits", None), "not_serving"),
    ],
)
def test_a_deployment_that_does_not_serve_says_so_and_when_to_come_again(route: Route, code: str) -> None:
    found = pick(build(route), "gw", "/digits/x")

    problem = json.loads(found["direct_response"]["body"]["inline_string"])
    headers = {item["header"]["key"]: item["header"]["value"] for item in found["response_headers_to_add"]}
    assert (found["direct_response"]["status"], problem["status"], problem["code"]) == (503, 503, code)
    assert int(headers["retry-after"]) > 0
    assert headers["content-type"] == "application/problem+json"


def test_holding_lengthens_the_wait_but_not_the_replicas_time() -> None:
    limits = Limits(timeout=10, hold=100)
    held = pick(build(serving(limits=limits, holding=True)), "gw", "/digits")["route"]
    plain = pick(build(serving(limits=limits)), "gw", "/digits")["route"]

    assert (plain["idle_timeout"], held["idle_timeout"]) == ("10.000s", "110.000s")
    assert held["retry_policy"]["per_try_timeout"] == plain["retry_policy"]["per_try_timeout"] == "10.000s"
    assert held["timeout"] == plain["timeout"] == "0s"


def test_a_cluster_without_replicas_keeps_the_placeholder_and_one_with_replicas_does_not() -> None:
    built = build(Route("digits", 2, clusters=(Target(1, (B, A)), Target(2))))

    endpoints = lb_endpoints(built)
    addresses = [item["endpoint"]["address"] for item in endpoints["digits.1"]]
    assert [a["socket_address"]["address"] for a in addresses] == ["10.0.0.1", "10.0.0.2"]
    assert endpoints["digits.2"] == [{"endpoint": {"address": {"pipe": {"path": "/none.sock"}}}}]


def test_limits_bound_what_replicas_get_what_queues_and_what_is_held() -> None:
    cluster: Any = build(serving(limits=Limits(in_flight=4, queue=9))).clusters[0]

    thresholds = cluster["circuit_breakers"]["thresholds"][0]
    assert (thresholds["max_connections"], thresholds["max_pending_requests"], thresholds["max_retries"]) == (4, 9, 9)


@pytest.mark.parametrize(
    "routes",
    [
        (Route("a/b", None),),
        (Route("..", None),),
        (Route("", None),),
        (Route("a\n", None),),
        (Route("%41", None),),
        (Route("*", None),),
        (Route("a", None), Route("a", None)),
        (Route("a", 2, clusters=(Target(1, (A,)),)),),
        (Route("a", 1, clusters=(Target(1, (A,)), Target(1, (B,)))),),
    ],
)
def test_what_cannot_be_routed_is_refused(routes: tuple[Route, ...]) -> None:
    with pytest.raises(InvalidInput):
        build(*routes)


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,12}", fullmatch=True)
addresses = st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2", "::1"]), st.integers(1, 65535))
targets = st.lists(
    st.builds(Target, st.integers(1, 50), st.lists(addresses, max_size=3, unique=True).map(tuple)),
    max_size=4,
    unique_by=lambda target: target.revision,
).map(tuple)


@st.composite
def some_routes(draw: st.DrawFn) -> list[Route]:
    found = []
    for name in draw(st.lists(names, max_size=6, unique=True)):
        clusters = draw(targets)
        revision = draw(st.sampled_from([None, *(target.revision for target in clusters)]))
        found.append(
            Route(name, revision, Limits(), clusters, holding=draw(st.booleans()), stopped=draw(st.booleans()))
        )
    return found


@given(some_routes())
def test_every_cluster_a_route_names_exists_with_endpoints(routes: list[Route]) -> None:
    built = build(*routes)

    existing = {cluster["name"] for cluster in built.clusters}
    used = {r["route"]["cluster"] for host in hosts(built) for r in host["routes"] if "route" in r}
    filled = lb_endpoints(built)
    assert used <= existing
    assert set(filled) == existing
    assert all(filled.values())
    assert {split_cluster(str(name)) for name in existing} == {
        (route.deployment, target.revision) for route in routes for target in route.clusters
    }


@given(some_routes(), st.randoms())
def test_the_digest_depends_on_what_is_said_and_not_on_its_order(routes: list[Route], random: Any) -> None:
    shuffled = list(routes)
    random.shuffle(shuffled)

    assert build(*shuffled).digest == build(*routes).digest
    assert build(*routes, port=8081).digest != build(*routes).digest
    assert build(*routes, Route("only-here-0123456789", None)).digest != build(*routes).digest


@given(some_routes())
def test_a_path_reaches_the_named_deployment_or_nothing(routes: list[Route]) -> None:
    built = build(*routes)

    for route in routes:
        serves = route.revision is not None and not route.stopped
        wanted = cluster_name(route.deployment, route.revision) if serves and route.revision is not None else 503
        assert goes_to(built, f"/{route.deployment}/x", "gw!") == wanted
        assert goes_to(built, f"/{route.deployment}", "gw!") == wanted
        longer = f"/{route.deployment}0"
        if longer[1:] not in {other.deployment for other in routes}:
            assert goes_to(built, longer, "gw!") == 404


@given(some_routes())
def test_no_domain_is_given_twice(routes: list[Route]) -> None:
    domains = [domain for host in hosts(build(*routes)) for domain in host["domains"]]

    assert len(domains) == len(set(domains))
