"""Calling a model through its endpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from quarterdeck_agent import protocol as p
from tests.console.fake_agent import DEPLOYMENT, REVISION, FakeAgent, Reply
from tests.console.running import qd


class Model(BaseHTTPRequestHandler):
    """A simulated gateway with a model behind it: answers what its path says."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = int(self.path.rpartition("/")[2]) if "/status/" in self.path else 200
        answer = b'{"got": ' + body + b', "path": "' + self.path.encode() + b'"}'
        if status == 503:
            answer = b'{"code": "stopped", "detail": "digits is stopped"}'
        if "/text" in self.path:
            answer = "\x1b[31mnot json\u202e".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        if status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint(agent: FakeAgent) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Model)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/digits"
    status = replace(DEPLOYMENT, endpoint=url)
    agent.answers["GET /v1/deployments/digits"] = Reply(p.DeploymentDetail(status, (REVISION,)))
    yield url
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_answer_is_printed_as_it_came(endpoint: str, fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "five.json").write_text("[5]")
    expected = '{"got": [5], "path": "/digits/v2/models/digits/infer"}'
    assert qd(fleet, "predict", "digits", "-d", "[5]").out == expected
    assert qd(fleet, "predict", "digits", "-d", f"@{tmp_path}/five.json").out == expected
    assert qd(fleet, "predict", "digits", "-d", "-", stdin=b"[5]").out == expected
    assert qd(fleet, "predict", "digits", "-d", "1", "--path", "other").out == '{"got": 1, "path": "/digits/other"}'


def test_json_holds_the_answer_and_what_it_took(endpoint: str, fleet: Path) -> None:
    from tests.console.test_json import validate

    ran = qd(fleet, "predict", "digits", "-d", "[5]", "--json")
    item = ran.json["item"]
    assert (item["host"], item["status"], item["answer"]["got"]) == ("box", 200, [5])
    assert item["seconds"] > 0
    validate(ran.json)
    told = qd(fleet, "predict", "digits", "-d", "1", "--path", "text", "--json")
    assert told.json["item"]["answer"] == "\x1b[31mnot json\u202e"
    assert "\x1b" not in told.out
    assert "\u202e" not in told.out


@pytest.mark.parametrize(("status", "code"), [(404, 3), (429, 1), (500, 1), (503, 1), (504, 8)])
def test_what_is_not_an_answer_is_an_error(status: int, code: int, endpoint: str, fleet: Path) -> None:
    ran = qd(fleet, "predict", "digits", "-d", "1", "--path", f"status/{status}")
    assert ran.code == code
    assert f"HTTP {status}" in ran.err
    assert ("try again in 7 s" in ran.err) is (status == 429)
    assert ran.out == ""


def test_the_gateways_problem_is_told_with_its_code(endpoint: str, fleet: Path) -> None:
    ran = qd(fleet, "predict", "digits", "-d", "1", "--path", "status/503", "--json")
    assert ran.json["error"]["code"] == "stopped"
    assert ran.json["error"]["detail"].endswith("HTTP 503: digits is stopped")


def test_a_gateway_that_is_not_there_is_unreachable(agent: FakeAgent, fleet: Path) -> None:
    assert qd(fleet, "predict", "digits", "-d", "1").code == 5


def test_a_file_that_is_not_there_is_usage(fleet: Path) -> None:
    assert qd(fleet, "predict", "digits", "-d", "@/nowhere").code == 2
