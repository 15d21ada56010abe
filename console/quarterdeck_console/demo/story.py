"""The demo's story, told step by step: every line says what happened and how long it took.

Drives the real commands on a private agent (`stage`) and keeps calling the model all the while (`load`). `run` prints;
`story` only yields events.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quarterdeck_console.clean import clean
from quarterdeck_console.demo.load import Digits, Load, read_answer
from quarterdeck_console.demo.stage import Answer, Stage, StageError, words_shown

NAME = "digits"
DWELL = ("--dwell", "0.5")
TRAIN_DEADLINE = 300.0


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the story. `seconds` is how long it took, `facts` what a program may want of it."""

    event: str
    text: str
    seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def run(*, as_json: bool, keep: bool, engine: str) -> int:
    """Tell the whole story on stdout; 0 when it went as it should."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="qd-demo-"))
    stage = Stage(folder, engine)
    kept = False
    try:
        for event in story(stage):
            tell(event, as_json)
        kept = keep
        code = 0
    except (StageError, subprocess.TimeoutExpired, OSError) as error:
        tell(Event("failed", str(error)), as_json)
        code = 1
    except KeyboardInterrupt:
        tell(Event("interrupted", "interrupted; cleaning up"), as_json)
        code = 130
    finally:
        if not kept:
            stage.stop()
    tell(_farewell(stage, kept, code, time.monotonic() - began), as_json)
    return code


def tell(event: Event, as_json: bool) -> None:
    """One event on stdout, as JSON or for people."""
    if as_json:
        value = {"event": event.event, "text": event.text, "seconds": event.seconds, **event.facts}
        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    else:
        took = f"{event.seconds:6.1f} s" if event.seconds is not None else " " * 8
        first, *rest = clean(event.text).splitlines() or [""]
        sys.stdout.write(f"{took}  {first}\n" + "".join(f"{' ' * 10}{line}\n" for line in rest))
    sys.stdout.flush()


def _farewell(stage: Stage, kept: bool, code: int, seconds: float) -> Event:
    facts = {"kept": str(stage.folder) if kept else None, "exit_code": code}
    if kept:
        text = f"kept in {stage.folder}; look around with\nexport QUARTERDECK_HOST={stage.url}\nqd status"
    else:
        text = "nothing is left of it on this machine" if code == 0 else "cleaned up"
    return Event("end", text, round(seconds, 3), facts)


def story(stage: Stage) -> Iterator[Event]:
    """The whole story; raises `StageError` where it does not go as it should."""
    bundles = stage.folder / "bundles"
    yield from _train(bundles)
    began = time.monotonic()
    stage.start()
    yield _took("agent", f"a private agent runs; engine {stage.engine}", began, {"url": stage.url})
    digits = Digits(**json.loads((bundles / "heldout.json").read_text()))
    yield from _first_version(stage, bundles, digits)
    endpoint = _endpoint(stage)
    with Load(endpoint, digits) as load:
        yield from _second_version(stage, bundles, load)
    yield _loaded("load", "while version 1 was replaced by 2", load)
    with Load(endpoint, digits) as load:
        yield from _broken_version(stage, bundles)
    yield _loaded("load", "while the broken version 3 was tried", load)
    for version, other, why in (("1", "2", "back to the first"), ("2", "1", "and forth: it is still warm")):
        with Load(endpoint, digits) as load:
            yield from _back(stage, load, version, other, why)
        yield _loaded("load", f"while {other} was rolled back to {version}", load)
    yield from _looking_back(stage)


# --- chapters --------------------------------------------------------------------------------------------------


def _train(bundles: Path) -> Iterator[Event]:
    began = time.monotonic()
    words = [sys.executable, "-m", "quarterdeck_console.demo.train", str(bundles), "--json"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TRAIN_DEADLINE, check=False
    )
    if done.returncode:
        raise StageError(f"training failed:\n{done.stderr[-2000:]}")
    for line in done.stdout.splitlines():
        event = json.loads(line)
        what = Path(event["bundle"]).name
        text = f"{event['event']} {what}: {event['accuracy']:.1%} of held-out digits right"
        yield Event(event["event"], text, event["seconds"] or None, {"accuracy": event["accuracy"], "bundle": what})
    yield _took("bundled", "three bundles written", began)


def _first_version(stage: Stage, bundles: Path, digits: Digits) -> Iterator[Event]:
    yield _did(stage.must("push", str(bundles / "digits-v1")), "pushed")
    yield _did(stage.must("deploy", "digits:1", *DWELL, "--why", "the first one"), "deployed")
    answer = stage.must("predict", NAME, "-d", f"@{bundles / 'five.json'}")
    yield _did(answer, "predicted", f"→ {_labels_in(answer)}")
    began = time.monotonic()
    right, version = _accuracy(_endpoint(stage), digits)
    facts = {"accuracy": right, "version": version}
    text = f"version {version} gets {right:.1%} of {len(digits.labels)} held-out digits right"
    yield _took("accuracy", text, began, facts)


def _second_version(stage: Stage, bundles: Path, load: Load) -> Iterator[Event]:
    yield _did(stage.must("push", str(bundles / "digits-v2")), "pushed")
    plan = stage.must("deploy", "digits:2", *DWELL, "--plan")
    first = plan.items[0] if plan.items else {}
    yield _did(plan, "planned", f"→ {first.get('handover', '')}: {first.get('why', '')}")
    began = time.monotonic()
    yield _did(stage.must("deploy", "digits:2", *DWELL, "--why", "more digits right"), "deployed")
    if load.wait_for("2", began) is None:
        raise StageError(f"version 2 was deployed but does not answer; seen: {load.counted.facts}")


def _broken_version(stage: Stage, bundles: Path) -> Iterator[Event]:
    yield _did(stage.must("push", str(bundles / "digits-v3")), "pushed")
    answer = stage.qd("deploy", "digits:3", *DWELL, "--why", "exported in a hurry")
    if answer.code != 1:
        raise StageError(f"the broken version 3 was not refused: exit code {answer.code} {answer.problem}")
    yield _did(answer, "refused", f"→ {answer.problem}")


def _back(stage: Stage, load: Load, version: str, other: str, why: str) -> Iterator[Event]:
    began = time.monotonic()
    answer = stage.must("rollback", NAME, "--why", why)
    last = load.wait_for(version, began)
    if last is None:
        raise StageError(f"rolled back, but version {version} does not answer; seen: {load.counted.facts}")
    text = f"→ the last answer of version {other} came {last:.2f} s after the command was given"
    yield _did(answer, "rolled back", text, {"to": version, "last_other_answer": round(last, 4)})


def _looking_back(stage: Stage) -> Iterator[Event]:
    history = stage.must("history", NAME)
    rows = [
        f"{row['number']}  {row['spec']['label']:<10} {row['outcome']:<11} {row.get('why', '')}"
        for row in history.items
    ]
    yield _did(history, "history", "\n" + "\n".join(rows), {"revisions": len(rows)})
    logs = stage.must("logs", NAME, "--tail", "5")
    lines = [str(line.get("text", "")) for line in logs.items]
    yield _did(logs, "logs", "\n" + "\n".join(lines) if lines else "", {"lines": len(lines)})


# --- telling ---------------------------------------------------------------------------------------------------


def _took(event: str, text: str, began: float, facts: dict[str, Any] | None = None) -> Event:
    return Event(event, text, round(time.monotonic() - began, 3), facts or {})


def _did(answer: Answer, event: str, outcome: str = "", facts: dict[str, Any] | None = None) -> Event:
    words = [Path(word).name if word.startswith("/") else word for word in answer.words]
    words = [f"@{Path(word[1:]).name}" if word.startswith("@") else word for word in words]
    text = f"{words_shown(words)} {outcome}".rstrip()
    return Event(event, text, round(answer.seconds, 3), {"exit_code": answer.code, **(facts or {})})


def _loaded(event: str, when: str, load: Load) -> Event:
    counted = load.counted
    if counted.failed:
        raise StageError(f"{counted.failed} of {counted.sent} requests failed {when}: {counted.failures[:3]}")
    answered = ", ".join(f"{count} by version {version}" for version, count in sorted(counted.by_version.items()))
    return Event(event, f"{when}: {counted.sent} requests, 0 failed ({answered})", None, counted.facts)


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
