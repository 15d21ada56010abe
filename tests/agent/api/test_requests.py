"""Requests as people and enemies send them: what is accepted, previewed, repeated, and refused with its field."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.agent.api.fakes import Running
from tests.agent.api.test_access import problem

DEPLOY = "/v1/deployments/there"
FILE = {"path": "a", "size": 1, "sha256": "0" * 64}


def test_a_deploy_is_accepted_and_names_its_operation(api: Running) -> None:
    response = api.client().put(DEPLOY, json={"version": "digits:1", "replicas": 2, "warm": 5})
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/operations/{response.json()['id']}"


def test_the_same_operation_id_returns_the_first_result(api: Running) -> None:
    headers = {"operation-id": "op-same"}
    first = api.client().put(DEPLOY, json={"version": "a", "why": "first"}, headers=headers).json()
    again = api.client().put(DEPLOY, json={"version": "b", "why": "again"}, headers=headers).json()
    assert first == again
    assert first["why"] == "first"


def test_a_preview_changes_nothing(api: Running) -> None:
    before = dict(api.changes.made)
    for method, path, body in (
        ("PUT", "", {"version": "a"}),
        ("POST", "/rollback", {}),
        ("POST", "/scale", {"replicas": 2}),
        ("POST", "/restart", {}),
        ("POST", "/stop", {}),
        ("DELETE", "", {}),
    ):
        response = api.client().request(method, f"{DEPLOY}{path}?plan=true", json=body)
        assert response.status_code == 200
        assert response.json()["if_it_fails"] == "nothing happens"
    assert api.changes.made == before


def test_a_mistyped_plan_does_not_make_the_change(api: Running) -> None:
    before = dict(api.changes.made)
    response = api.client().put(f"{DEPLOY}?plann=true", json={"version": "a"})
    assert response.status_code == 422
    assert problem(response)["field"] == "plann"
    assert api.changes.made == before


@pytest.mark.parametrize("header", ["3", '"3"', "*"])
def test_the_generation_the_caller_saw_lets_the_change_through(api: Running, header: str) -> None:
    response = api.client().post(f"{DEPLOY}/restart", headers={"if-match": header})
    assert response.status_code == 202


def test_another_generation_loses_and_learns_who_won(api: Running) -> None:
    response = api.client().post(f"{DEPLOY}/restart", headers={"if-match": "2"})
    assert response.status_code == 409
    assert problem(response)["operation"] == "op-winner"


def test_the_detail_carries_its_generation(api: Running) -> None:
    response = api.client().get(DEPLOY)
    assert response.headers["etag"] == '"3"'
    assert response.json()["version"]["label"] == "digits:1"


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PUT", DEPLOY, {}, "version"),
        ("PUT", DEPLOY, {"version": 5}, "version"),
        ("PUT", DEPLOY, {"version": "a", "replicas": "3"}, "replicas"),
        ("PUT", DEPLOY, {"version": "a", "replicas": True}, "replicas"),
        ("PUT", DEPLOY, {"version": "a", "replicas": 1.5}, "replicas"),
        ("PUT", DEPLOY, {"version": "a", "replicas": 2**63}, "replicas"),
        ("PUT", DEPLOY, {"version": "a", "bogus": 1}, "bogus"),
        ("PUT", DEPLOY, {"version": "a", "limits": {"in_flight": 1, "bogus": 1}}, "limits.bogus"),
        ("PUT", DEPLOY, {"version": "a", "env": {"A": 1}}, "env.A"),
        ("PUT", DEPLOY, {"version": "a", "handover": "yolo"}, "handover"),
        ("PUT", DEPLOY, {"version": "a", "why": "x" * 70_000}, "why"),
        ("POST", f"{DEPLOY}/scale", {}, "replicas"),
        ("POST", f"{DEPLOY}/rollback", {"to": "1"}, None),
        ("POST", "/v1/pushes", {"files": [FILE, FILE | {"size": "1"}], "config": {}}, "files[1].size"),
        ("POST", "/v1/pushes", {"files": [FILE | {"mode": 7}], "config": {}}, "files[0].mode"),
        ("POST", "/v1/pushes", {"files": {}, "config": {}}, "files"),
        ("POST", "/v1/versions", {"files": [], "config": [], "allow_pickle": "yes"}, "config"),
    ],
)
def test_a_wrong_field_is_named(api: Running, method: str, path: str, body: Any, field: str | None) -> None:
    response = api.client().request(method, path, json=body)
    document = problem(response)
    assert response.status_code == 422
    assert document["hint"]
    if field:
        assert document["field"] == field


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b'{"version": NaN}',
        b'{"version": "a", "warm": NaN}',
        b'{"version": "a", "warm": 1e999}',
        b'{"version": "a", "warm": Infinity}',
        b'{"version": "\\ud800"}',
        b'{"version": "\xff"}',
        b"[" * 100_000,
        b'{"version":' * 5_000,
        b"9" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_proper_json_is_refused(api: Running, body: bytes) -> None:
    response = api.client().put(DEPLOY, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    assert len(response.content) < 1_000
    problem(response)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_json_is_taken(api: Running, kind: str) -> None:
    response = api.client().put(DEPLOY, content=b'{"version": "a"}', headers={"content-type": kind})
    assert response.status_code == 415
    problem(response)


def test_a_body_that_is_too_large_is_refused_by_its_length_and_by_its_bytes(api: Running) -> None:
    body = b'{"version": "' + b"a" * (1 << 20) + b'"}'
    headers = {"content-type": "application/json"}
    assert api.client().put(DEPLOY, content=body, headers=headers).status_code == 413
    pieces = (body[at : at + 65_536] for at in range(0, len(body), 65_536))
    assert api.client().put(DEPLOY, content=pieces, headers=headers).status_code == 413


NAMES = [
    "..", "%2e%2e", "%252e%252e%252fetc", "%2e%2e%2f", "..%5c", "a%00b", "a%0ab", "-a", "A", "a" * 64, "a" * 4096,
    "%c0%ae", "ａ", "а", "a b", "a%2fb", "%E2%80%AEa", "[/x]", "%1b[2J", "a" * 9000,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:24])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_hostile_name_reaches_nothing(api: Running, name: str, method: str) -> None:
    before = dict(api.changes.made)
    body = {"version": "a"} if method == "PUT" else None
    response = api.client().request(method, f"http://localhost/v1/deployments/{name}", json=body)
    assert response.status_code in (400, 404, 405, 422)
    assert "\x1b" not in response.text
    assert len(response.content) < 1_000
    problem(response)
    assert api.changes.made == before


@pytest.mark.parametrize("digest", ["a" * 63, "a" * 65, "A" * 64, "../" + "a" * 61, "a" * 63 + "%00", "ａ" * 64, "%2e"])
def test_only_a_sha256_in_lower_case_names_a_blob(api: Running, digest: str) -> None:
    for method in ("GET", "PUT"):
        response = api.client().request(method, f"http://localhost/v1/blobs/{digest}?size=1", content=b"a")
        assert response.status_code in (404, 422)
        problem(response)
    assert not api.blobs.held.keys() & {digest}


@pytest.mark.parametrize(
    "query", ["", "size=-1", "size=x", "size=1&offset=-1", "size=1&offset=2", "size=1e3", f"size={2**60}", "size=1&x=1"]
)
def test_a_wrong_size_or_offset_is_refused(api: Running, query: str) -> None:
    response = api.client().put(f"/v1/blobs/{'b' * 64}?{query}", content=b"")
    assert response.status_code in (413, 422)
    problem(response)
    assert "b" * 64 not in api.blobs.held


def test_a_blob_arrives_in_two_parts(api: Running) -> None:
    data = bytes(range(256)) * 20_000
    digest = hashlib.sha256(data).hexdigest()
    half = len(data) // 2
    client = api.client()
    first = client.put(f"/v1/blobs/{digest}?size={len(data)}", content=data[:half])
    assert first.json() == {"sha256": digest, "size": len(data), "offset": half}
    assert client.get(f"/v1/blobs/{digest}").json() == {"sha256": digest, "size": half, "offset": half}
    second = client.put(f"/v1/blobs/{digest}?size={len(data)}&offset={half}", content=data[half:])
    assert second.json()["offset"] == len(data)
    assert bytes(api.blobs.held[digest]) == data


def test_more_bytes_than_a_blob_lacks_are_refused(api: Running) -> None:
    response = api.client().put(f"/v1/blobs/{'c' * 64}?size=10", content=b"x" * 11)
    assert response.status_code == 413
    problem(response)


def test_wrong_bytes_are_refused(api: Running) -> None:
    response = api.client().put(f"/v1/blobs/{'d' * 64}?size=1", content=b"x")
    assert response.status_code == 422
    assert problem(response)["field"] == "sha256"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/v1/status/", 404),
        ("GET", "/v1//status", 404),
        ("POST", "/v1/status", 405),
        ("PATCH", DEPLOY, 405),
        ("OPTIONS", "/v1/status", 405),
        ("GET", "/v1/deployments/nobody", 404),
        ("GET", "/v1/versions/nothing", 404),
        ("GET", "/v1/series?name=nothing", 404),
        ("GET", "/v1/series?name=host.cpu&since=yesterday", 422),
        ("GET", "/v1/series?name=host.cpu&step=0", 422),
        ("GET", "/v1/series?name=host.cpu&step=nan", 422),
        ("GET", "/v1/series?name=host.cpu&step=inf", 422),
        ("GET", "/v1/series?name=host.cpu&points=1", 422),
        ("GET", "/v1/series?name=host.cpu&points=1000000", 422),
        ("GET", "/v1/series?name=", 422),
        ("GET", "/v1/series?name=host.cpu&since=0001-01-01T00:00:00%2B14:00", 422),
        ("GET", "/v1/operations?limit=0", 422),
        ("GET", f"{DEPLOY}/logs?tail=-1", 422),
        ("GET", f"{DEPLOY}/logs?revision=404", 404),
        ("GET", "/v1/deployments/nobody/logs", 404),
    ],
)
def test_what_is_not_there_is_told_as_a_problem(api: Running, method: str, path: str, status: int) -> None:
    response = api.client().request(method, path)
    assert response.status_code == status
    problem(response)
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize("header", ["x" * 65, "a b", "a/b", "ä", ""])
def test_an_operation_id_is_short_and_plain(api: Running, header: str) -> None:
    response = api.client().put(DEPLOY, json={"version": "a"}, headers={b"operation-id": header.encode()})
    assert response.status_code == 422
    assert problem(response)["field"] == "Operation-Id"


@pytest.mark.parametrize("header", ["x", "-1", '"3', "3.0", 'W/"3"', "9" * 19, ""])
def test_a_generation_is_a_number(api: Running, header: str) -> None:
    response = api.client().put(DEPLOY, json={"version": "a"}, headers={"if-match": header})
    assert response.status_code == 422
    assert problem(response)["field"] == "If-Match"


def test_every_answer_carries_a_request_id(api: Running) -> None:
    client = api.client()
    assert client.get("/v1/status", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(client.get("/nothing", headers={"x-request-id": "bad id"}).headers["x-request-id"]) == 16


@pytest.mark.parametrize("path", [DEPLOY, f"{DEPLOY}/revisions"])
def test_secrets_of_a_revision_s_environment_are_never_told(api: Running, path: str) -> None:
    response = api.client().get(path)
    assert response.status_code == 200
    assert "HF_TOKEN" in response.text and '"BATCH":"5"' in response.text.replace(" ", "")
    assert "s3cret" not in response.text


def test_a_series_is_asked_for_from_a_moment_on_and_thinned(api: Running) -> None:
    query = {"name": "host.cpu", "key": "GPU-0", "since": "2026-11-01T13:00:00+01:00", "step": "600", "points": "50"}
    found = api.client().get("/v1/series", params=query).json()
    assert (found["key"], found["step"]) == ("GPU-0", 600)
    assert found["samples"] == [{"at": "2026-11-01T12:00:00Z", "value": None, "max": 50}]


def test_hello_and_the_reads_answer(api: Running) -> None:
    client = api.client()
    assert client.get("/v1/hello").json()["product"] == "quarterdeck"
    assert client.get("/v1/status").json()["info"]["name"] == "cpu-1"
    assert client.get("/v1/runtimes").json()[0]["name"] == "python"
    assert client.get("/v1/series?name=host.cpu").json()["samples"][0]["value"] is None
    assert client.get("/v1/series").json() == [{"name": "host.cpu", "key": "", "unit": "ratio"}]
    assert client.get(f"{DEPLOY}/revisions").json()[0]["number"] == 1
    assert json.loads(client.get("/v1/openapi.json").content)["openapi"].startswith("3.1")


def test_a_gpu_can_be_trusted_again_for_a_reason(api: Running) -> None:
    response = api.client().post("/v1/gpus/GPU-1/trust", json={"why": "reset and tested"})
    assert response.status_code == 202
    made = response.json()
    assert (made["kind"], made["target"], made["why"], made["state"]) == (
        "trust-gpu",
        "GPU-1",
        "reset and tested",
        "succeeded",
    )
    assert response.headers["location"] == f"/v1/operations/{made['id']}"


def test_trusting_a_gpu_that_is_not_there_is_refused(api: Running) -> None:
    response = api.client().post("/v1/gpus/GPU-2/trust")
    assert response.status_code == 404
    assert problem(response)["field"] == "uuid"
