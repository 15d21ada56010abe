"""`qd predict`: call a deployed model through the gateway."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quarterdeck_console.cli.call import Call, collect, run, verb
from quarterdeck_console.errors import ConsoleError, Refused, TimedOut, Unreachable, Usage, of_status

if TYPE_CHECKING:
    from quarterdeck_agent.protocol import DeploymentDetail
    from quarterdeck_console.transport import Response


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of a model."""

    host: str
    name: str
    url: str
    body: bytes | None
    timeout: float


@verb(
    short_help="Call a deployed model through the gateway.",
    epilog="""
    qd predict digits -d @five.json
    qd predict digits -d '{"inputs": [[0, 0, 5]]}'
    cat five.json | qd predict digits -d -
    qd predict digits --path /health       # GET, as nothing is sent
    """,
)
@click.argument("name")
@click.option(
    "--data", "-d", metavar="JSON|@FILE|-", help="The request's body: JSON, a file's content, or stdin. None: a GET."
)
@click.option("--path", metavar="PATH", help="Path below the endpoint; by default the runtime's own for predictions.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.01),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the answer may take.",
)
def command(call: Call, name: str, data: str | None, path: str | None, timeout: float) -> int:
    """Send a request to a deployment's stable endpoint and print the answer."""
    body = _body(data)
    host, detail = _find(call, name)
    url = (
        detail.status.endpoint.rstrip("/")
        + "/"
        + (path if path is not None else detail.status.predict_path).lstrip("/")
    )
    return run(_predict(call, Asked(host, name, url, body, timeout)))


def _body(data: str | None) -> bytes | None:
    if data is None:
        return None
    if data == "-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode("utf-8", "surrogateescape")
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise Usage(f"cannot read {data[1:]}: {error.strerror}") from error


def _find(call: Call, name: str) -> tuple[str, DeploymentDetail]:
    found, errors = collect(call, call.hosts(), lambda client: client.deployment(name), absent_is_fine=True)
    if not found:
        raise errors[0]
    if len(found) > 1:
        raise Usage(f"{name} is on {', '.join(host for host, _ in found)}", hint="say which one with --host")
    return found[0]


async def _predict(call: Call, asked: Asked) -> int:
    from quarterdeck_console import transport

    started = time.perf_counter()
    try:
        async with transport.gateway_client(transport.Timeout(asked.timeout, connect=min(5.0, asked.timeout))) as http:
            response = await http.request(
                "GET" if asked.body is None else "POST",
                asked.url,
                content=asked.body,
                headers={} if asked.body is None else {"Content-Type": "application/json"},
            )
    except transport.ConnectTimeout as error:
        raise _away(asked) from error
    except transport.TimeoutException as error:
        raise TimedOut(
            f"{asked.name} did not answer within {asked.timeout:g} s", host=asked.host, hint="see qd logs " + asked.name
        ) from error
    except (transport.HTTPError, transport.InvalidURL) as error:
        raise _away(asked) from error
    seconds = time.perf_counter() - started
    if response.status_code >= 400:
        raise _refused(asked, response)
    if call.out.json:
        call.out.item("Prediction", _plain(asked, response, seconds))
    else:
        call.out.raw(response.content)
    return 0


def _away(asked: Asked) -> Unreachable:
    return Unreachable(
        f"the gateway of {asked.host} cannot be reached at {asked.url}",
        host=asked.host,
        hint="by default it listens on the host's loopback only; see qd doctor",
    )


def _refused(asked: Asked, response: Response) -> ConsoleError:
    """What the gateway or the model said instead of an answer."""
    from quarterdeck_console.clean import clean

    kind = Refused if response.status_code in (401, 403, 409) else of_status(response.status_code)
    code, words = _problem(response)
    retry = response.headers.get("Retry-After")
    return kind(
        f"{asked.name} on {asked.host} answered HTTP {response.status_code}" + (f": {words}" if words else ""),
        code=code,
        host=asked.host,
        hint=f"try again in {clean(retry)} s" if retry else f"see qd logs {asked.name}",
    )


def _problem(response: Response) -> tuple[str, str]:
    """A stable code and the words of a refusal: of a problem document, else of whatever the model said."""
    import json

    from quarterdeck_console.clean import clean

    words = response.content[:500].decode("utf-8", "backslashreplace").strip()
    try:
        told = json.loads(response.content)
    except ValueError:
        told = None
    if isinstance(told, dict) and isinstance(told.get("detail"), str):
        code = told.get("code")
        return clean(code) if isinstance(code, str) else f"http_{response.status_code}", clean(told["detail"])
    return f"http_{response.status_code}", clean(words)


def _plain(asked: Asked, response: Response, seconds: float) -> dict[str, Any]:
    """The answer as JSON where it is JSON, else as text."""
    import json

    answer: Any
    try:
        answer = json.loads(response.content)
    except ValueError:
        answer = response.content.decode("utf-8", "backslashreplace")
    return {
        "host": asked.host,
        "deployment": asked.name,
        "url": asked.url,
        "status": response.status_code,
        "seconds": round(seconds, 6),
        "answer": answer,
    }
