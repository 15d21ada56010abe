"""The demo's story, told step by step: every line says what happened and how long it took.

Drives the real commands on a private agent (`stage`) and keeps calling the model all the while (`load`). `run` tells it
(`telling`); `story` only yields events.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quarterdeck_console.demo.load import Digits, Load, read_answer
from quarterdeck_console.demo.stage import Answer, Stage, StageError, absent_packages, words_shown
from quarterdeck_console.demo.telling import Event, Teller

NAME = "digits"
DWELL = ("--dwell", "0.5")
TRAIN_DEADLINE = 300.0
PREFIX = "qd-demo-"


def run(*, as_json: bool, keep: bool, engine: str) -> int:
    """Tell the whole story on stdout; 0 when it went as it should."""
    began = time.monotonic()
    with Teller(as_json) as teller:
        if absent := absent_packages():
            hint = "pip install 'quarterdeck[demo]'"
            text = f"the demo runs an agent and a model, and this Python lacks {', '.join(absent)}"
            teller.tell(Event("failed", f"{text}\ninstall what is missing: {hint}", None, {"hint": hint}))
            return 1
        stage = Stage(Path(tempfile.mkdtemp(prefix=PREFIX)), engine, teller.doing)
        code, left = 1, list[str]()
        on_signals(_interrupt)
        try:
            for event in story(stage, teller):
                teller.tell(event)
            code = 0
        except (StageError, subprocess.TimeoutExpired, OSError) as error:
            teller.tell(Event("failed", str(error)))
        except KeyboardInterrupt:
            teller.tell(Event("interrupted", "interrupted; cleaning up"))
            code = 130
        finally:
            # Whoever is impatient now would only leave something behind; every step of the end has its deadline.
            on_signals(signal.SIG_IGN)
            kept = keep and code == 0
            if not kept:
                left = stage.stop()
        if left and code == 0:
            code = 1
        teller.tell(_farewell(stage, kept, left, code, time.monotonic() - began))
    return code


def on_signals(what: Callable[[int, Any], None] | signal.Handlers) -> None:
    """What Ctrl-C, `kill` and a closed terminal do."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, what)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt


def end(folder: Path, *, as_json: bool) -> int:
    """End a demo that was kept, and remove everything of it."""
    began = time.monotonic()
    with Teller(as_json) as teller:
        try:
            stage = Stage.kept(folder, teller.doing)
        except StageError as error:
            teller.tell(Event("failed", str(error)))
            return 1
        left = stage.stop()
        code = 1 if left else 0
        teller.tell(_farewell(stage, False, left, code, time.monotonic() - began, told=False))
    return code


def _farewell(stage: Stage, kept: bool, left: list[str], code: int, seconds: float, *, told: bool = True) -> Event:
    facts: dict[str, Any] = {"kept": str(stage.folder) if kept else None, "left": left, "exit_code": code}
    if kept:
        facts["url"] = stage.url
        text = (
            f"everything goes on running in {stage.folder}\n"
            f"look around:  export QUARTERDECK_HOST={stage.url}\n"
            "              qd status\n"
            f"end it:       qd demo --end {stage.folder}"
        )
    elif left:
        text = "these could not be removed:\n" + "\n".join(left)
    else:
        outcome = "it all went as it should; " if code == 0 and told else ""
        image = " but the image of the Python runtimes, which the next run takes" if stage.engine == "docker" else ""
        text = f"{outcome}nothing of it is left on this machine{image}"
    return Event("end", text, round(seconds, 3), facts)


def story(stage: Stage, teller: Teller) -> Iterator[Event]:
    """The whole story; raises `StageError` where it does not go as it should."""
    what = "containers" if stage.engine == "docker" else "processes"
    text = (
        "A private agent serves a small model: it is deployed, called, upgraded\n"
        f"under load, guarded from a broken version, rolled back. Replicas: {what}."
    )
    yield Event("story", text, None, {"engine": stage.engine, "folder": str(stage.folder)})
    bundles = stage.folder / "bundles"
    teller.doing("torch and the digits are loaded, two small models trained")
    yield from _train(stage, bundles)
    if stage.engine == "docker":
        began = time.monotonic()
        yield _took("image", stage.make_image(), began)
    began = time.monotonic()
    stage.start()
    text = f"a private agent answers; its gateway listens on 127.0.0.1:{stage.port}"
    yield _took("agent", text, began, {"url": stage.url})
    digits = Digits(**json.loads((bundles / "heldout.json").read_text()))
    yield from _first_version(stage, bundles, digits)
    endpoint = _endpoint(stage)
    with Load(endpoint, digits) as load:
        yield from _second_version(stage, bundles, load)
    yield _loaded("while version 2 replaced version 1", load)
    with Load(endpoint, digits) as load:
        yield from _broken_version(stage, bundles)
    yield _loaded("while the broken version 3 was tried", load)
    for version, other, why in (("1", "2", "back to the first"), ("2", "1", "and forth: it is still warm")):
        with Load(endpoint, digits) as load:
            yield from _back(stage, load, version, other, why)
        yield _loaded(f"while version {version} came back", load)
    yield from _looking_back(stage)


# --- chapters --------------------------------------------------------------------------------------------------


def _train(stage: Stage, bundles: Path) -> Iterator[Event]:
    began = time.monotonic()
    words = [sys.executable, "-m", "quarterdeck_console.demo.train", str(bundles), "--json"]
    done = subprocess.run(
        words,
        env=stage.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TRAIN_DEADLINE,
        check=False,
        start_new_session=True,
    )
    if done.returncode:
        raise StageError(f"training failed:\n{done.stderr[-2000:]}")
    for line in done.stdout.splitlines():
        event = json.loads(line)
        what, right = Path(event["bundle"]).name, f"{event['accuracy']:.1%}"
        if event["event"] == "broke":
            text = f"{what} broken on purpose, {event['title']}: {right} right"
        else:
            text = f"{what} trained, {event['title']}: {right} right"
        yield Event(event["event"], text, event["seconds"] or None, {"accuracy": event["accuracy"], "bundle": what})
    text = "three bundles written, loading torch included; right = on digits held out"
    yield _took("bundled", text, began)


def _first_version(stage: Stage, bundles: Path, digits: Digits) -> Iterator[Event]:
    yield _pushed(stage, bundles / "digits-v1")
    deployed = stage.must("deploy", "digits:1", *DWELL, "--why", "the first one")
    yield _did(deployed, "deployed", f"serving at {_endpoint(stage)}", {"steps": _steps(deployed)})
    answer = stage.must("predict", NAME, "-d", f"@{bundles / 'five.json'}")
    yield _did(answer, "predicted", _labels_in(answer))
    began = time.monotonic()
    right, version = _accuracy(_endpoint(stage), digits)
    facts = {"accuracy": right, "version": version}
    text = f"version {version} gets {right:.1%} of {len(digits.labels)} held-out digits right by the gateway"
    yield _took("accuracy", text, began, facts)


def _second_version(stage: Stage, bundles: Path, load: Load) -> Iterator[Event]:
    yield _pushed(stage, bundles / "digits-v2")
    plan = stage.must("deploy", "digits:2", *DWELL, "--plan")
    first = plan.items[0] if plan.items else {}
    yield _did(plan, "planned", f"nothing done yet; it would be {first.get('handover', '')}: {first.get('why', '')}")
    began = time.monotonic()
    deployed = stage.must("deploy", "digits:2", *DWELL, "--why", "more digits right")
    yield _did(deployed, "deployed", _in_steps(deployed), {"steps": _steps(deployed)})
    if load.wait_for("2", began) is None:
        raise StageError(f"version 2 was deployed but does not answer; seen: {load.counted.facts}")


def _broken_version(stage: Stage, bundles: Path) -> Iterator[Event]:
    yield _pushed(stage, bundles / "digits-v3")
    answer = stage.qd("deploy", "digits:3", *DWELL, "--why", "exported in a hurry")
    if answer.code != 1:
        raise StageError(f"the broken version 3 was not refused: exit code {answer.code} {answer.problem}")
    why = answer.problem.partition(" failed: ")[2] or answer.problem
    yield _did(answer, "refused", f"refused, exit code 1: {why}", {"problem": answer.problem})


def _back(stage: Stage, load: Load, version: str, other: str, why: str) -> Iterator[Event]:
    began = time.monotonic()
    answer = stage.must("rollback", NAME, "--why", why)
    last = load.wait_for(version, began)
    if last is None:
        raise StageError(f"rolled back, but version {version} does not answer; seen: {load.counted.facts}")
    text = f"version {version} answers alone from {last:.2f} s after the command began"
    yield _did(answer, "rolled back", text, {"to": version, "last_other_answer": round(last, 4)})


def _looking_back(stage: Stage) -> Iterator[Event]:
    history = stage.must("history", NAME)
    rows = [f"{'REV':<5}{'VERSION':<10}{'OUTCOME':<10}WHY"] + [
        f"{row['number']:<5}{row['spec']['label']:<10}{row['outcome']:<10}{row.get('why', '')}" for row in history.items
    ]
    yield _did(history, "history", facts={"revisions": len(history.items)}, rows=rows)
    logs = stage.must("logs", NAME, "--tail", "5")
    lines = [f"revision {line.get('revision')} | {line.get('text', '')}" for line in logs.items]
    yield _did(logs, "logs", facts={"lines": len(lines)}, rows=lines)


# --- telling ---------------------------------------------------------------------------------------------------


def _took(event: str, text: str, began: float, facts: dict[str, Any] | None = None) -> Event:
    return Event(event, text, round(time.monotonic() - began, 3), facts or {})


def _did(
    answer: Answer, event: str, outcome: str = "", facts: dict[str, Any] | None = None, rows: list[str] | None = None
) -> Event:
    """A command, and below it what came of it."""
    lines = [f"$ {words_shown(answer.words)}", *([f"→ {outcome}"] if outcome else []), *(rows or [])]
    return Event(event, "\n".join(lines), round(answer.seconds, 3), {"exit_code": answer.code, **(facts or {})})


def _pushed(stage: Stage, bundle: Path) -> Event:
    answer = stage.must("push", str(bundle))
    version = answer.items[0] if answer.items else {}
    facts = {"id": version.get("id"), "label": version.get("label"), "size": version.get("size")}
    files, size = len(version.get("files", ())), float(version.get("size", 0)) / 1024
    text = f"{facts['label']} is version {str(facts['id'])[:12]}: {files} files, {size:.0f} KiB"
    return _did(answer, "pushed", text, facts)


def _steps(answer: Answer) -> list[dict[str, Any]]:
    steps = answer.items[0].get("steps", ()) if answer.items else ()
    return [{"name": step["name"], "seconds": step.get("elapsed")} for step in steps]


def _in_steps(answer: Answer) -> str:
    return ", ".join(f"{step['name']} {step['seconds'] or 0:.1f} s" for step in _steps(answer))


def _loaded(when: str, load: Load) -> Event:
    counted = load.counted
    if counted.failed:
        raise StageError(f"{counted.failed} of {counted.sent} requests failed {when}: {counted.failures[:3]}")
    answered = ", ".join(f"{count} by version {version}" for version, count in sorted(counted.by_version.items()))
    text = f"{counted.sent} requests {when}, 0 failed\n→ answered: {answered}"
    return Event("load", text, round(load.seconds, 3), counted.facts)


# --- asking ----------------------------------------------------------------------------------------------------


def _endpoint(stage: Stage) -> str:
    """The URL that predictions go to."""
    for row in stage.must("status").items:
        if row["name"] == NAME:
            return str(row["endpoint"]).rstrip("/") + "/" + str(row["predict_path"]).lstrip("/")
    raise StageError(f"{NAME} is not deployed")


def _accuracy(url: str, digits: Digits) -> tuple[float, str]:
    """The share of held-out digits that whoever answers gets right, and which version that is."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=60)
    try:
        connection.request(
            "POST", parts.path, digits.request(0, len(digits.labels)), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise StageError(f"{url} does not answer: {error}") from error
    finally:
        connection.close()
    try:
        version, labels = read_answer(body)
    except (ValueError, KeyError) as error:
        raise StageError(f"{url} answered {answer.status}: {body[:300]!r}") from error
    right = sum(mine == theirs for mine, theirs in zip(labels, digits.labels, strict=True))
    return round(right / len(digits.labels), 4), version


def _labels_in(answer: Answer) -> str:
    """What `qd predict --json` says the image shows."""
    try:
        _, labels = read_answer(json.dumps(answer.items[0]["answer"]))
    except (KeyError, IndexError, ValueError) as error:
        raise StageError(f"qd predict answered something else: {str(answer.value)[:300]}") from error
    return f"it is a {labels[0]}"
