"""The console in a browser: who is let in, and that a real Chromium shows it and gives it keys."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest

from tests.console.running import command, environment, qd, write_fleet

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1100,700",
)  # fmt: skip


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    return write_fleet(tmp_path / "fleet.toml", {"gpu-a1": "unix:///nowhere/agent.sock"})


@contextlib.contextmanager
def serving(fleet: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A running `qd serve`, and the address that it printed."""
    process = subprocess.Popen(
        command("serve", "--port", "0", *arguments), env=environment(fleet),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().decode().strip()
        assert url.startswith("http://127.0.0.1:"), process.stderr.read().decode()
        yield url, process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def answer(url: str, path: str | None = None, **headers: str) -> tuple[int, http.client.HTTPMessage]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("GET", parts.path if path is None else path, headers=headers)
        got = connection.getresponse()
        got.read()
        return got.status, got.headers
    finally:
        connection.close()


# --- who is let in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.2", "::", "fe80::1"])
def test_any_address_that_others_can_reach_is_refused(fleet: Path, address: str) -> None:
    ran = qd(fleet, "serve", "--address", address)
    assert (ran.code, ran.out) == (2, "")
    assert "loopback only" in ran.err and "ssh -L" in ran.err


def test_a_name_is_not_an_address(fleet: Path) -> None:
    ran = qd(fleet, "serve", "--address", "example.com", "--json")
    assert ran.code == 2 and ran.json["error"]["field"] == "--address"


def test_without_the_extra_it_says_what_to_install(fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text("import sys\nsys.modules['textual_serve'] = None\n")
    path = environment(fleet)["PYTHONPATH"]
    ran = qd(fleet, "serve", extra={"PYTHONPATH": f"{tmp_path / 'hidden'}:{path}"})
    assert ran.code == 1
    assert "textual_serve" in ran.err and "pip install 'quarterdeck[serve]'" in ran.err
    assert "Traceback" not in ran.err


def test_only_who_knows_the_secret_and_asks_from_this_machine_gets_the_page(fleet: Path) -> None:
    with serving(fleet) as (url, _):
        parts = urlsplit(url)
        own = f"http://{parts.netloc}"
        assert len(parts.path.strip("/")) >= 32
        status, headers = answer(url)
        assert status == 200
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "googleapis" not in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert answer(url, Origin=own)[0] == 200
        for path in ("/", "/ws", "/static/", f"/{'x' * 32}/", f"/{'x' * 32}/ws"):
            assert answer(url, path)[0] == 404
        assert answer(url, Host="evil.example")[0] == 403
        assert answer(url, Origin="http://evil.example")[0] == 403
        assert answer(url, Origin="null")[0] == 403


def test_another_sites_page_opens_no_socket(fleet: Path) -> None:
    async def story(url: str) -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(url.replace("http", "ws", 1) + "ws", origin="http://evil.example")
            assert refused.value.status == 403

    with serving(fleet) as (url, _):
        asyncio.run(story(url))


def test_it_ends_on_sigterm_and_tells_a_taken_port(fleet: Path) -> None:
    with serving(fleet) as (url, process):
        ran = qd(fleet, "serve", "--port", str(urlsplit(url).port))
        assert ran.code == 1 and "cannot listen" in ran.err and "--port" in ran.err
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_json_tells_the_address_as_a_value(fleet: Path) -> None:
    process = subprocess.Popen(
        command("serve", "--port", "0", "--read-only", "--json"), env=environment(fleet), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        told = b""
        for line in lines:
            told += line
            if line == b"}\n":
                break
        found = json.loads(told)
        assert found["kind"] == "Serving" and found["item"]["read_only"] is True
        assert answer(found["item"]["url"])[0] == 200
    finally:
        process.terminate()
        process.communicate(timeout=20)


# --- the app behind a page -------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncGenerator[aiohttp.ClientWebSocketResponse, None]:
    """A page's own socket, without the page."""
    parts = urlsplit(url)
    where = f"ws://{parts.netloc}{parts.path}ws?width=100&height=30"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(where, origin=f"http://{parts.netloc}") as socket,
    ):
        yield socket


async def until_shown(socket: aiohttp.ClientWebSocketResponse, text: str) -> None:
    shown = ""
    async with asyncio.timeout(20):
        while text not in shown:
            shown += (await socket.receive_bytes()).decode(errors="replace")


def ended(processes: list[psutil.Process]) -> bool:
    """Whether all of them end within the time that is given them."""
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not alive


def test_an_app_ends_with_its_page(fleet: Path) -> None:
    async def story(url: str, server: psutil.Process) -> None:
        async with opened(url) as socket:
            await until_shown(socket, "gpu-a1")
            apps = server.children(recursive=True)
            assert apps
        assert await asyncio.to_thread(ended, apps)

    with serving(fleet) as (url, process):
        asyncio.run(story(url, psutil.Process(process.pid)))


def test_every_app_ends_with_the_server(fleet: Path) -> None:
    async def story(url: str, server: psutil.Process) -> None:
        async with opened(url) as one, opened(url) as other:
            await until_shown(one, "gpu-a1")
            await until_shown(other, "gpu-a1")
            apps = server.children(recursive=True)
            server.terminate()
            assert await asyncio.to_thread(ended, apps)

    with serving(fleet) as (url, process):
        asyncio.run(story(url, psutil.Process(process.pid)))


def test_read_only_holds_in_the_page(fleet: Path) -> None:
    async def story(url: str) -> None:
        async with opened(url) as socket:
            await until_shown(socket, "read-only")

    with serving(fleet, "--read-only") as (url, _):
        asyncio.run(story(url))


# --- in a browser ----------------------------------------------------------------------------------------------------


@dataclass
class Page:
    """One page of a headless Chromium over its DevTools protocol; keeps what came over the page's own socket."""

    socket: aiohttp.ClientWebSocketResponse
    received: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    number: int = 0

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        mine = self.number
        await self.socket.send_json({"id": mine, "method": method, "params": parameters})
        await self.until(lambda: mine in self.answers, method)
        return self.answers[mine]

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
        """Read what the browser says until this is so."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._take(json.loads(await self.socket.receive_str()))

    def _take(self, told: dict[str, Any]) -> None:
        if "id" in told:
            self.answers[told["id"]] = told.get("result", {"error": told.get("error")})
        elif told["method"] == "Network.webSocketFrameReceived":
            frame = told["params"]["response"]
            raw = base64.b64decode(frame["payloadData"]) if frame["opcode"] == 2 else frame["payloadData"].encode()
            self.received.append(raw.decode(errors="replace"))
        elif told["method"] == "Network.responseReceived":
            self.loaded.append(told["params"]["response"]["url"])

    @property
    def text(self) -> str:
        return "".join(self.received)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[int]:
    """A headless Chromium, and the port of its DevTools."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=os.environ | {"HOME": str(folder)}, start_new_session=True,
    )  # fmt: skip
    try:
        written, end = folder / "DevToolsActivePort", time.monotonic() + 20
        while not (written.exists() and (lines := written.read_text().splitlines())):
            assert time.monotonic() < end, "Chromium did not start"
            time.sleep(0.05)
        yield int(lines[0])
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.asynccontextmanager
async def page_of(port: int) -> AsyncGenerator[Page, None]:
    """Its first page."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as got:
            found = next(each for each in await got.json() if each["type"] == "page")
        async with session.ws_connect(found["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            for domain in ("Network", "Page", "Runtime"):
                await page.ask(f"{domain}.enable")
            yield page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the console in a browser is NOT TESTED")
def test_a_browser_shows_the_console_and_gives_it_keys(fleet: Path, tmp_path: Path) -> None:
    async def story(url: str, port: int) -> None:
        async with page_of(port) as page:
            await page.ask("Page.navigate", url=url)
            await page.until(lambda: "Quarterdeck" in page.text and "gpu-a1" in page.text, "the fleet is shown")
            before = len(page.received)
            await page.ask("Runtime.evaluate", expression="document.querySelector('textarea').focus()")
            await page.ask("Input.dispatchKeyEvent", type="keyDown", key="2", text="2", code="Digit2")
            await page.ask("Input.dispatchKeyEvent", type="keyUp", key="2", code="Digit2")
            await page.until(lambda: "no version yet" in "".join(page.received[before:]), "the versions are shown")
            shown = await page.ask("Runtime.evaluate", expression="document.body.className")
            assert "-first-byte" in shown["result"]["value"]
            shot = await page.ask("Page.captureScreenshot", format="png")
            (tmp_path / "shot.png").write_bytes(base64.b64decode(shot["data"]))
            own = urlsplit(url).netloc
            assert {urlsplit(each).netloc for each in page.loaded if not each.startswith("data:")} == {own}

    with serving(fleet) as (url, _), chromium(tmp_path / "chromium") as port:
        asyncio.run(story(url, port))
