"""What the gateway should do, as Envoy v3 resources: a pure function of the routes, without files, clocks or sockets.

Where the files lie is the driver's business (`drivers/envoy.py` adds the config sources). Endpoints, requests and
the deployments' names are data here: a name that could reach into another route is refused, never quoted.

How time is limited. Envoy's route `timeout` would cut long streams, so it is off. `Limits.timeout` is used twice:
as `per_try_timeout`, the deadline from the moment the whole request has reached a replica to the first byte of its
answer (Envoy lets a response that has begun run on), and as the stream's `idle_timeout`, the longest silence in
either direction. A stream lives as long as it says something every `timeout` seconds; a request that waits in the
queue or for a replica is silent, so it gets its 504 after `timeout`, or `hold + timeout` while requests are held.

How much is let in. Replicas speak HTTP/1.1, one request a connection, so `max_connections` is what they get at once
(each replica may always have one). Envoy counts a request whose connection is being opened as queued, therefore the
queue is never made shorter than `in_flight`: a shorter one would refuse bursts far below the limit. The counts are
exact with one Envoy worker, which is what the driver starts by default.

How requests wait. A cluster without a replica gets an endpoint nobody listens on; connect failures are tried again
every 0.2 s at most, as often as it takes, and `max_retries` bounds how many may wait so: no more than may be queued.
Each try is in the queue for a moment; were there more, those that try again at the same moment could be refused.
Sources: envoyproxy.io, api-v3 `route_components.proto`, `circuit_breaker.proto`, `http_connection_manager.proto`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from quarterdeck_agent.drivers.base import RoutingResources
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.protocol import PROBLEM_MEDIA_TYPE, Limits

Json = dict[str, object]

ROUTE_CONFIG = "deployments"
HELD_BODY = 64 * 1024 * 1024
"""Bytes of one request's body that Envoy keeps while the request waits; a longer one gets 507 if it has to wait."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ANY_NUMBER = 1_000_000
_TYPES = "type.googleapis.com/envoy"
_HCM = f"{_TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = f"{_TYPES}.extensions.filters.http.router.v3.Router"
_FILE_LOG = f"{_TYPES}.extensions.access_loggers.file.v3.FileAccessLog"
_LEAST_REQUEST = f"{_TYPES}.extensions.load_balancing_policies.least_request.v3.LeastRequest"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True)
class Target:
    """One revision's cluster: its ready replicas as (address, port). With none, requests wait."""

    revision: int
    endpoints: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Where one deployment's requests go.

    `revision` names the cluster that gets new requests (`None`: nothing serves yet), `clusters` all that must exist,
    draining ones too. `holding` lets requests wait longer; `stopped` refuses them kindly.
    """

    deployment: str
    revision: int | None
    limits: Limits = field(default_factory=Limits)
    clusters: tuple[Target, ...] = ()
    holding: bool = False
    stopped: bool = False


def cluster_name(deployment: str, revision: int) -> str:
    """The cluster of one revision; `split_cluster` is its inverse."""
    return f"{deployment}.{revision}"


def split_cluster(name: str) -> tuple[str, int]:
    """(deployment, revision) of a cluster's name."""
    deployment, _, revision = name.rpartition(".")
    return deployment, int(revision)


def resources(
    routes: Iterable[Route],
    *,
    host: str,
    port: int,
    access_log: str,
    placeholder: str,
    own_names: Sequence[str] = (),
) -> RoutingResources:
    """The whole configuration of the gateway.

    `access_log` is the file of JSON lines, `placeholder` the path of a Unix socket nobody listens on. A deployment
    whose name is a name of this host (`own_names`, an address, localhost) is reached by path only: its virtual host
    would take the requests of all others. Raises `InvalidInput` for a name, a limit or a revision that cannot work.
    """
    ordered = sorted(routes, key=lambda route: route.deployment)
    _check(ordered)
    listeners = (_listener(host, port, access_log),)
    route_config = (_route_config(ordered, own_names),)
    clusters, endpoints = [], []
    for route in ordered:
        for target in sorted(route.clusters, key=lambda target: target.revision):
            clusters.append(_cluster(route, target))
            endpoints.append(_assignment(route.deployment, target, placeholder))
    parts = (listeners, route_config, tuple(clusters), tuple(endpoints))
    return RoutingResources(*parts, digest=digest(parts))


def digest(value: object) -> str:
    """A short, stable name for a JSON-able value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _check(routes: Sequence[Route]) -> None:
    seen: set[str] = set()
    for route in routes:
        name = route.deployment
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"{name!r} cannot be routed: it is not a deployment's name", field="name")
        if name in seen:
            raise InvalidInput(f"deployment {name} has two routes", field="name")
        seen.add(name)
        revisions = [target.revision for target in route.clusters]
        if len(set(revisions)) != len(revisions):
            raise InvalidInput(f"deployment {name} has two clusters for one revision", field="revision")
        if route.revision is not None and route.revision not in revisions:
            raise InvalidInput(f"deployment {name} routes to revision {route.revision}, which has no cluster")


# --- clusters --------------------------------------------------------------------------------------------------


def _cluster(route: Route, target: Target) -> Json:
    limits = route.limits
    in_flight = max(1, limits.in_flight)
    waiting = max(in_flight, limits.queue)
    options: Json = {
        "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
        # Servers close idle connections on their own (gunicorn after 2 s, uvicorn and node after 5); a request sent
        # at that very moment would be lost, so Envoy lets go first. Connecting again costs 0.1 ms on one host.
        "common_http_protocol_options": {"idle_timeout": "1s"},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    thresholds: Json = {
        "max_connections": in_flight,
        "max_pending_requests": waiting,
        "max_requests": _ANY_NUMBER,
        "max_retries": waiting,
        "track_remaining": True,
    }
    # Five random choices find the idlest of a few replicas nearly always. A full scan would send a burst that finds all
    # idle to the first of them: a request counts as running only once its connection is open.
    policy = {"@type": _LEAST_REQUEST, "choice_count": 5}
    least_request = {"name": "least_request", "typed_config": policy}
    return {
        "name": cluster_name(route.deployment, target.revision),
        "type": "EDS",
        "connect_timeout": "1s",
        "load_balancing_policy": {"policies": [{"typed_extension_config": least_request}]},
        # An endpoint that drains gets nothing, not even when no other is left: then requests wait.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": {"thresholds": [thresholds]},
        "typed_extension_protocol_options": {_HTTP_OPTIONS: options},
    }


def _assignment(deployment: str, target: Target, placeholder: str) -> Json:
    """The endpoints of one cluster. Envoy answers 503 at once for a cluster with none, hence the placeholder."""
    addresses: list[Json] = [_socket(*endpoint) for endpoint in sorted(target.endpoints)]
    if not addresses:
        addresses = [{"pipe": {"path": placeholder}}]
    return {
        "cluster_name": cluster_name(deployment, target.revision),
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}],
    }


def _socket(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


# --- routes ----------------------------------------------------------------------------------------------------


def _route_config(routes: Sequence[Route], own_names: Sequence[str]) -> Json:
    by_path = [entry for route in routes for entry in _path_routes(route)]
    hosts = [_virtual_host(route) for route in routes if not _names_this_host(route.deployment, own_names)]
    everyone: Json = {"name": "*", "domains": ["*"], "routes": [*by_path, _unknown()]}
    return {"name": ROUTE_CONFIG, "ignore_port_in_host_matching": True, "virtual_hosts": [*hosts, everyone]}


def _path_routes(route: Route) -> list[Json]:
    """`/{name}` alone and everything under `/{name}/`; a plain prefix would also take `/{name}2`."""
    name = route.deployment
    action = _action(route)
    return [
        {"match": {"path": f"/{name}"}, **_rewritten(action)},
        {"match": {"prefix": f"/{name}/"}, **_rewritten(action)},
    ]


def _rewritten(action: Json) -> Json:
    forward = action.get("route")
    return {**action, "route": {**forward, "prefix_rewrite": "/"}} if isinstance(forward, dict) else action


def _virtual_host(route: Route) -> Json:
    name = route.deployment
    return {
        "name": name,
        "domains": [name, f"{name}.*"],
        "routes": [{"match": {"prefix": "/"}, **_action(route)}],
    }


def _names_this_host(name: str, own_names: Sequence[str]) -> bool:
    if all(part.isdigit() for part in name.split(".")):
        return True  # `127` would match the Host of every request to 127.0.0.1
    own = ("localhost", *(other.lower() for other in own_names))
    return any(other == name or other.startswith(f"{name}.") for other in own)


def _action(route: Route) -> Json:
    name = route.deployment
    if route.stopped:
        text = f"deployment {name} is stopped"
        return _refusal(name, 503, "stopped", "The deployment is stopped", text, retry_after=30)
    if route.revision is None:
        text = f"deployment {name} has no revision that serves yet"
        return _refusal(name, 503, "not_serving", "The deployment does not serve yet", text, retry_after=5)
    limits = route.limits
    silence = limits.timeout + (limits.hold if route.holding else 0.0)
    forward: Json = {
        "cluster": cluster_name(name, route.revision),
        "timeout": "0s",
        "idle_timeout": _duration(silence),
        "retry_policy": {
            "retry_on": "connect-failure",
            "num_retries": _ANY_NUMBER,
            "per_try_timeout": _duration(limits.timeout),
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.2s"},
        },
    }
    revision = _header("x-quarterdeck-revision", str(route.revision))
    return {
        "name": name,
        "route": forward,
        "request_body_buffer_limit": HELD_BODY,
        "response_headers_to_add": [revision],
    }


def _refusal(name: str, status: int, code: str, title: str, detail: str, *, retry_after: int | None = None) -> Json:
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail})
    headers = [_header("content-type", PROBLEM_MEDIA_TYPE)]
    if retry_after is not None:
        headers.append(_header("retry-after", str(retry_after)))
    answer: Json = {"status": status, "body": {"inline_string": body}}
    return {"name": name, "direct_response": answer, "response_headers_to_add": headers}


def _unknown() -> Json:
    detail = "no deployment of this host has that name; the first part of the path is the deployment's name"
    return {"match": {"prefix": "/"}, **_refusal("", 404, "not_found", "There is no such deployment", detail)}


def _header(key: str, value: str) -> Json:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _duration(seconds: float) -> str:
    return f"{seconds:.3f}s"


# --- the listener ----------------------------------------------------------------------------------------------


def _listener(host: str, port: int, access_log: str) -> Json:
    """One listener. Its name carries the address: another address is another listener, the old one drains.

    `SO_REUSEPORT` is off, or a second gateway on the same port would start and silently take half of the requests.
    """
    return {
        "name": f"gateway {host}:{port}",
        "address": _socket(host, port),
        "enable_reuse_port": False,
        "filter_chains": [
            {"filters": [{"name": "http", "typed_config": _connection_manager(access_log)}]},
        ],
    }


def _connection_manager(access_log: str) -> Json:
    return {
        "@type": _HCM,
        "stat_prefix": "gateway",
        "rds": {"route_config_name": ROUTE_CONFIG},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": _ROUTER, "suppress_envoy_headers": True}},
        ],
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "access_log": [{"name": "file", "typed_config": _access_log(access_log)}],
        "local_reply_config": {"mappers": _local_replies()},
        "use_remote_address": True,
        # Nobody is trusted to steer Envoy by x-envoy-* headers, clients on this host neither.
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "normalize_path": True,
        "request_headers_timeout": "10s",
        "server_name": "quarterdeck",
        "server_header_transformation": "APPEND_IF_ABSENT",
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "localhost"},
    }


def _access_log(path: str) -> Json:
    """JSON lines. The path is the one the replica saw, without its query, which may carry secrets."""
    fields = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "method": "%REQ(:METHOD)%",
        "host": "%REQ(:AUTHORITY)%",
        "path": "%PATH(NQ:PATH)%",
        "protocol": "%PROTOCOL%",
        "deployment": "%ROUTE_NAME%",
        "cluster": "%UPSTREAM_CLUSTER_RAW%",
        "replica": "%UPSTREAM_HOST%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "duration_ms": "%DURATION%",
        "received": "%BYTES_RECEIVED%",
        "sent": "%BYTES_SENT%",
    }
    return {"@type": _FILE_LOG, "path": path, "log_format": {"json_format": fields}}


# What Envoy itself answers, by its response flags (first match counts): flags, status to set, code, title, detail.
_REPLIES: tuple[tuple[tuple[str, ...], int | None, str, str, str], ...] = (
    (("UO",), 429, "overloaded", "Too many requests", "as many requests as its limits allow are running and waiting"),
    (("UT", "SI"), None, "timeout", "It took too long", "no answer within the deployment's time limit"),
    (("UC", "UR", "LR", "UPE"), 502, "replica_failed", "The replica failed", "the replica ended the connection"),
    (("UF", "UH", "URX", "NC", "OM"), 503, "no_replica", "No replica can be reached", "no replica took the request"),
    (("DPE",), None, "invalid_input", "The request is not valid", "the request is not valid HTTP"),
)


def _local_replies() -> list[Json]:
    replies = [
        _local_reply({"response_flag_filter": {"flags": list(flags)}}, status, code, title, detail)
        for flags, status, code, title, detail in _REPLIES
    ]
    large = "the body is too large to wait for a replica"
    for status in (413, 507):
        comparison: Json = {"op": "EQ", "value": {"default_value": status, "runtime_key": "unset"}}
        replies.append(
            _local_reply(
                {"status_code_filter": {"comparison": comparison}}, None, "too_large", "The request is too large", large
            )
        )
    return replies


def _local_reply(match: Json, status: int | None, code: str, title: str, detail: str) -> Json:
    body = {
        "type": "about:blank",
        "title": title,
        "status": status or "%RESPONSE_CODE%",
        "code": code,
        "detail": f"deployment %ROUTE_NAME%: {detail}",
    }
    reply: Json = {
        "filter": match,
        "body_format_override": {"json_format": body, "content_type": PROBLEM_MEDIA_TYPE},
    }
    if status is not None:
        reply["status_code"] = status
    if status in (429, 503):
        reply["headers_to_add"] = [_header("retry-after", "1")]
    return reply
