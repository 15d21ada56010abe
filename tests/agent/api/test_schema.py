"""The OpenAPI document: committed, complete, and kept by the server under random requests.

After a wanted change: `PYTHONPATH=agent python -m quarterdeck_agent.api.schema tests/agent/api/openapi.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from quarterdeck_agent.api.access import LocalToken
from quarterdeck_agent.api.app import build
from quarterdeck_agent.api.schema import document, written
from tests.agent.api.fakes import TOKEN, Running, parts

COMMITTED = Path(__file__).with_name("openapi.json")
EXAMPLES = 12
STREAMED = "/v1/watch"


def made() -> dict[str, Any]:
    return document(build(parts(), LocalToken(TOKEN)))


def test_the_committed_document_is_what_the_code_makes() -> None:
    app = build(parts(), LocalToken(TOKEN))
    assert COMMITTED.read_text(encoding="utf-8") == written(app), __doc__


def test_everything_in_the_document_is_described() -> None:
    for path, operations in made()["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["description"], where
            assert operation["operationId"], where
            assert "application/problem+json" in operation["responses"]["default"]["content"], where
            for parameter in operation.get("parameters", []):
                assert parameter.get("description"), (where, parameter["name"])
            for status, response in operation["responses"].items():
                assert response["description"], (where, status)


def test_every_reference_in_the_document_leads_somewhere() -> None:
    text = json.dumps(made())
    schemas = made()["components"]["schemas"]
    names = {piece.split('"')[0] for piece in text.split("#/components/schemas/")[1:]}
    assert names <= schemas.keys()
    assert {"Problem", "LogLine", "Delta", "DeployRequest"} <= schemas.keys()


def test_request_bodies_forbid_what_is_not_known() -> None:
    schemas = made()["components"]["schemas"]
    for name in ("DeployRequest", "LimitsInput", "PushRequest", "ManifestFileInput", "ScaleRequest", "ChangeRequest"):
        assert schemas[name]["additionalProperties"] is False, name


def test_random_requests_meet_no_server_error_and_only_what_the_document_says(api: Running) -> None:
    schema = schemathesis.openapi.from_dict(made())
    client = api.client()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == STREAMED:
            continue

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def conforms(case: Any) -> None:
            if (case.query or {}).get("follow"):
                case.query = {**case.query, "follow": False}
            arguments = case.as_transport_kwargs(base_url="http://localhost")
            given = {name: str(value).strip() for name, value in dict(arguments.get("headers") or {}).items()}
            headers = {name: value for name, value in given.items() if value.isprintable() and value.isascii()}
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            answer = client.request(
                arguments["method"],
                arguments["url"],
                params=arguments.get("params"),
                json=arguments.get("json"),
                content=arguments.get("data"),
                headers={**headers, "authorization": f"Bearer {TOKEN}"},
            )
            case.validate_response(
                schemathesis.Response.from_any(answer),
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ],
            )

        conforms()
