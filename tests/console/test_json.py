"""What `--json` prints: exact bytes, valid by the shipped schemas, and without heavy imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from quarterdeck_console.cli import schemas
from quarterdeck_console.cli.main import VERBS
from tests.console.fake_agent import GPU_STATUS, FakeAgent
from tests.console.running import environment, qd, write_bundle

GOLDEN = Path(__file__).parent / "golden"
CALLS = {
    "status": ["status"],
    "describe": ["describe", "digits"],
    "history": ["history", "digits"],
    "versions": ["versions"],
    "versions-remove": ["versions", "--remove", "digits:2", "--yes"],
    "hosts": ["hosts"],
    "gpus": ["gpus"],
    "gpus-since": ["gpus", "--since", "2026-01-31T12:00:00Z", "--points", "500"],
    "logs": ["logs", "digits", "--tail", "2"],
    "operations": ["operations"],
    "operation": ["operations", "op-2"],
    "runtimes": ["runtimes"],
    "doctor": ["doctor"],
    "deploy": ["deploy", "digits:2"],
    "deploy-plan": ["deploy", "digits:2", "--plan"],
    "rollback": ["rollback", "digits"],
    "scale": ["scale", "digits", "3"],
    "restart": ["restart", "digits"],
    "stop": ["stop", "digits"],
    "rm": ["rm", "digits", "--yes"],
    "push": ["push", "BUNDLE"],
    "schema": ["schema"],
    "not-found": ["describe", "nothing"],
    "usage": ["deploy", "digits:2", "--replicas", "many"],
    "no-confirmation": ["rm", "digits"],
}
HEAVY = {"textual", "pydantic", "fastapi", "sqlmodel", "docker", "torch", "rich", "anyio", "httpcore", "psutil"}


def validate(document: Any) -> None:
    path = schemas.FOLDER / f"{document['kind']}.json"
    jsonschema_rs.validator_for(json.loads(path.read_text())).validate(document)


@pytest.mark.parametrize("name", CALLS)
def test_json_of_each_verb_is_byte_for_byte_what_it_was_and_valid(
    name: str, agent: FakeAgent, fleet: Path, tmp_path: Path
) -> None:
    agent.answers["DELETE /v1/versions/digits:2"] = agent_says_nothing()
    agent.status = GPU_STATUS if "gpus" in name else agent.status
    bundle = write_bundle(tmp_path / "bundle", {"model.pt": b"weights"})
    ran = qd(fleet, *(str(bundle) if word == "BUNDLE" else word for word in CALLS[name]), "--json")
    said = ran.out.replace(str(tmp_path), "/TMP") + f"exit code {ran.code}\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("QUARTERDECK_WRITE_GOLDEN"):
        path.write_text(said)
    assert said == path.read_text()
    assert ran.err == ""
    documents = ran.lines if name == "logs" else [ran.json]
    for document in documents:
        validate(document)


def agent_says_nothing() -> Any:
    from tests.console.fake_agent import Reply

    return Reply(b"", 204)


def test_every_verb_is_compared_or_has_a_test_of_its_own() -> None:
    elsewhere = {"version", "predict", "demo", "completion", "serve"}
    assert {words[0] for words in CALLS.values()} | elsewhere == set(VERBS)


def test_shipped_schemas_are_those_that_the_classes_make() -> None:
    made = {f"{kind}.json": schemas.text(document) for kind, document in schemas.documents().items()}
    shipped = {path.name: path.read_text() for path in schemas.FOLDER.glob("*.json")}
    assert shipped == made, "run python -m quarterdeck_console.cli.schemas"


def test_schemas_refuse_what_is_not_of_their_kind() -> None:
    path = schemas.FOLDER / "DeploymentList.json"
    validator = jsonschema_rs.validator_for(json.loads(path.read_text()))
    good = {"api_version": "quarterdeck/v1", "kind": "DeploymentList", "items": [], "errors": []}
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "items": [{"host": "box"}]})
    assert not validator.is_valid({**good, "kind": "Other"})


def test_schema_prints_the_schema_of_a_kind(fleet: Path) -> None:
    assert qd(fleet, "schema", "Error").json["title"] == "Error"
    assert qd(fleet, "schema", "Nonsense").code == 3


def test_version_needs_no_host(tmp_path: Path) -> None:
    ran = qd(tmp_path / "none.toml", "version", "--json")
    assert ran.code == 0
    assert ran.json["item"]["version"] == "0.1.0"
    validate(ran.json)


@pytest.mark.parametrize("verb", ["version", "status", "hosts", "gpus", "logs digits", "deploy digits:2", "doctor"])
def test_headless_verbs_import_nothing_heavy(verb: str, agent: FakeAgent, fleet: Path) -> None:
    script = (
        "import sys; from quarterdeck_console.cli.main import run; code = run(sys.argv[1:]);"
        "print(chr(10) + 'MODULES', *sorted({name.partition('.')[0] for name in sys.modules})); sys.exit(code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *verb.split(), "--json"],
        capture_output=True, text=True, env=environment(fleet), timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    modules = set(ended.stdout.rpartition("MODULES ")[2].split())
    assert "quarterdeck_console" in modules
    assert not modules & HEAVY
    if verb == "version":
        assert not modules & {"httpx", "msgspec", "asyncio"}


def test_a_stream_is_one_valid_object_a_line(agent: FakeAgent, fleet: Path) -> None:
    from quarterdeck_agent import protocol as p
    from tests.console.running import command

    process = subprocess.Popen(
        command("status", "--watch", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(fleet)
    )
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["kind"], first["type"], first["item"]["name"]) == ("DeploymentEvent", "snapshot", "digits")
        agent.push_event(p.Delta("deployment", "digits", None))
        gone = json.loads(process.stdout.readline())
        assert (gone["type"], gone["item"]) == ("removed", {"host": "box", "key": "digits"})
        for document in (first, gone):
            validate(document)
    finally:
        process.kill()
        process.communicate()
