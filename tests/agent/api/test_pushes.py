"""Pushing a bundle: what is missing is told, bytes arrive over the socket, and a version comes of it once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent import catalogue
from quarterdeck_agent.api.ports import Parts
from quarterdeck_agent.blobs import Blobs
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.pushes import Pushes
from quarterdeck_agent.store import Store
from tests.agent.api import fakes
from tests.agent.api.fakes import Running, running
from tests.agent.api.test_access import problem

HANDLER = b"class Model: ...\n"
CARD = b"# Digits\n"
RUNTIMES = Path(catalogue.__file__).with_name("runtimes")


class Recorder(fakes.FakeBlobs):
    """The real blobs behind the shape that `running` asks for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        real = Blobs(folder, reserve=0, share=0)
        self.real = real
        self.offset = real.offset  # type: ignore[method-assign]
        self.write = real.write  # type: ignore[method-assign]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Running]:
    clock = SystemClock()
    store = Store.open(tmp_path / "store.sqlite", tmp_path / "backups", clock)
    blobs = Recorder(tmp_path)

    def change(parts: Parts) -> Parts:
        pushes = Pushes(store, blobs.real, catalogue.load(RUNTIMES, tmp_path / "none"), clock, lambda: None)
        return dataclasses.replace(parts, pushes=pushes, blobs=blobs, records=store)

    with running(tmp_path, change=change) as live:
        yield live
    store.close()


def bundle(files: dict[str, bytes] | None = None, **config: Any) -> dict[str, Any]:
    files = {"handler.py": HANDLER, "README.md": CARD} if files is None else files
    listed = [{"path": path, "size": len(data), "sha256": sha256(data)} for path, data in files.items()]
    settings = {"handler": "handler:Model"}
    whole = {"name": "digits", "version": "1", "runtime": "python", "settings": settings, "card": "README.md"}
    return {"files": listed, "config": whole | config}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def send(host: Running, *blobs: bytes) -> None:
    for data in blobs:
        answer = host.client().put(f"/v1/blobs/{sha256(data)}?size={len(data)}", content=data)
        assert answer.json()["offset"] == len(data), answer.text


def test_a_push_sends_what_is_missing_and_makes_one_version(host: Running) -> None:
    client = host.client()
    plan = client.post("/v1/pushes", json=bundle()).json()
    assert {wanted["sha256"] for wanted in plan["missing"]} == {sha256(HANDLER), sha256(CARD)}
    send(host, HANDLER)
    assert [wanted["sha256"] for wanted in client.post("/v1/pushes", json=bundle()).json()["missing"]] == [sha256(CARD)]
    early = client.post("/v1/versions", json=bundle())
    assert early.status_code == 409
    assert problem(early)["field"] == "files"
    send(host, CARD)
    made = client.post("/v1/versions", json=bundle(), headers={"operation-id": "op-push"})
    assert made.status_code == 201
    assert made.json()["id"] == plan["id"]
    assert made.json()["card"] == CARD.decode()
    again = client.post("/v1/versions", json=bundle(), headers={"operation-id": "op-other"})
    assert again.json() == made.json()
    assert client.post("/v1/pushes", json=bundle()).json()["version"]["label"] == "digits:1"
    assert [operation["id"] for operation in client.get("/v1/operations").json()] == ["op-push"]
    assert client.get("/v1/versions/digits:1").json()["id"] == plan["id"]


def test_a_label_that_names_other_bytes_is_refused_before_any_byte_travels(host: Running) -> None:
    send(host, HANDLER, CARD)
    assert host.client().post("/v1/versions", json=bundle()).status_code == 201
    other = host.client().post("/v1/pushes", json=bundle(env={"A": "1"}))
    assert other.status_code == 409
    assert problem(other)["field"] == "config.version"


def test_a_pickle_needs_leave_and_the_leave_is_recorded(host: Running) -> None:
    import pickle

    files = {"handler.py": HANDLER, "README.md": CARD, "weights.pkl": pickle.dumps({"a": [1, 2]})}
    send(host, *files.values())
    refused = host.client().post("/v1/versions", json=bundle(files))
    assert refused.status_code == 422
    assert str(problem(refused)["field"]).startswith("files[2]")
    allowed = host.client().post("/v1/versions", json=bundle(files) | {"allow_pickle": True})
    assert allowed.status_code == 201
    assert allowed.json()["pickle_allowed"] is True


@pytest.mark.parametrize(
    ("config", "status"),
    [({"runtime": "nothing"}, 404), ({"settings": {"bogus": 1}}, 422), ({"name": "../x"}, 422), ({"bogus": 1}, 422)],
)
def test_a_wrong_model_toml_is_refused_with_its_field(host: Running, config: dict[str, Any], status: int) -> None:
    for path in ("/v1/pushes", "/v1/versions"):
        answer = host.client().post(path, json=bundle(**config))
        assert answer.status_code == status, answer.text
        assert problem(answer)["hint"]
    assert host.client().get("/v1/versions").json() == []


def test_wrong_bytes_never_become_a_blob(host: Running) -> None:
    answer = host.client().put(f"/v1/blobs/{sha256(CARD)}?size={len(CARD)}", content=b"x" * len(CARD))
    assert answer.status_code == 422
    problem(answer)
    assert host.client().get(f"/v1/blobs/{sha256(CARD)}").json()["offset"] == 0


def test_a_removed_version_is_gone_and_its_removal_is_on_record(host: Running) -> None:
    send(host, HANDLER, CARD)
    client = host.client()
    client.post("/v1/versions", json=bundle())
    assert client.delete("/v1/versions/digits:1", headers={"operation-id": "op-gone"}).status_code == 204
    assert client.get("/v1/versions/digits:1").status_code == 404
    assert client.get("/v1/operations/op-gone").json()["state"] == "succeeded"


def test_removing_a_version_frees_at_once_what_no_other_needs(host: Running) -> None:
    client = host.client()
    weights = {number: f"weights of {number}".encode() for number in ("1", "2")}
    for number, data in weights.items():
        files = {"handler.py": HANDLER, "README.md": CARD, "weights.bin": data}
        send(host, *files.values())
        assert client.post("/v1/versions", json=bundle(files, version=number)).status_code == 201
    client.delete("/v1/versions/digits:1")
    held = {
        data: client.get(f"/v1/blobs/{sha256(data)}").json()["offset"] for data in (HANDLER, CARD, *weights.values())
    }
    assert held == {HANDLER: len(HANDLER), CARD: len(CARD), weights["1"]: 0, weights["2"]: len(weights["2"])}
