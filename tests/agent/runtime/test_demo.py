"""The demo's own parts, without an agent: what its load counts, and how it reads the answers of commands."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quarterdeck_console.demo import stage
from quarterdeck_console.demo.load import Digits, Load
from quarterdeck_console.demo.stage import Answer, _parsed
from quarterdeck_console.demo.story import run
from quarterdeck_console.demo.telling import Event, Teller

DIGITS = Digits(images=[[0] * 64, [1] * 64], labels=[0, 1])


class Model(BaseHTTPRequestHandler):
    """Answers with the version and status that its server has at the moment; knows both digits."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server: Any = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        label = request["inputs"][0]["data"][0]
        outputs = [{"name": "label", "shape": [1], "datatype": "INT64", "data": [label]}]
        body = json.dumps({"model_version": server.version, "outputs": outputs}).encode()
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def model() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads, server.version, server.status = True, "1", 200
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait(condition: Any) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_load_counts_answers_by_version_and_sees_a_switch() -> None:
    with model() as server, Load(f"http://127.0.0.1:{server.server_port}/d/infer", DIGITS, pause=0.002) as load:
        wait(lambda: load.counted.by_version["1"] > 5)
        assert load.wait_for("2", time.monotonic(), deadline=0.3) is None
        began = time.monotonic()
        server.version = "2"
        took = load.wait_for("2", began)
        assert took is not None and took < 5
    assert load.counted.failed == 0
    assert load.counted.facts["requests"] == sum(load.counted.by_version.values())
    assert load.counted.facts["right"] == 1.0


def test_load_counts_every_failure_and_tells_the_first_words() -> None:
    with model() as server, Load(f"http://127.0.0.1:{server.server_port}/d/infer", DIGITS, pause=0.002) as load:
        server.status = 503
        wait(lambda: load.counted.failed > 3)
    assert "503" in load.counted.failures[-1]


def test_answers_of_commands_are_read_whatever_they_are() -> None:
    stream = '{"type": "line", "item": {"text": "a"}}\n{"type": "end", "item": null}\n'
    assert Answer(("logs",), 0, _parsed(stream, ""), 0.1).items == [{"text": "a"}]
    failed = '{"kind": "Error", "error": {"detail": "no"}, "errors": []}'
    assert Answer(("x",), 1, _parsed(failed, ""), 0.1).problem == "no"
    assert Answer(("x",), 1, _parsed("", "Traceback"), 0.1).problem == "Traceback"
    assert Answer(("x",), 0, _parsed('{"item": {"a": 1}, "errors": []}', ""), 0.1).items == [{"a": 1}]


def test_the_story_is_told_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    event = Event("history", "qd history\n1  \x1b[31mdigits:1", 1.25, {"revisions": 1})
    with Teller(as_json=False) as teller:
        teller.doing("not shown, since nobody looks on")
        teller.tell(event)
    shown = capsys.readouterr().out
    assert shown.startswith("   1.2 s  qd history\n          1  ") and "\x1b" not in shown and "looks on" not in shown
    with Teller(as_json=True) as teller:
        teller.tell(event)
    told = json.loads(capsys.readouterr().out)
    assert (told["event"], told["seconds"], told["revisions"]) == ("history", 1.25, 1)


def test_without_its_extra_the_demo_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "NEEDED", ("click", "quarterdeck-no-such-package"))
    assert run(as_json=True, keep=False, engine="process") == 1
    (told,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert told["event"] == "failed" and "lacks quarterdeck-no-such-package" in told["text"]
    assert told["hint"] == "pip install 'quarterdeck[demo]'"
