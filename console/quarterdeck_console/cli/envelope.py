"""The one shape of everything that `--json` prints, and which kinds of it there are.

`{"api_version", "kind", "items" | "item" | "error", "errors"}`; a stream is one such object a line, with `type` and
`item`. Only ever added to within `quarterdeck/v1`. An item of a host bears that host's name as `host`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quarterdeck_console.clean import escape_json
from quarterdeck_console.errors import ConsoleError

if TYPE_CHECKING:
    from quarterdeck_console.gpus import Device

API_VERSION = "quarterdeck/v1"


def plain(value: Any, host: str | None = None) -> Any:
    """`value` as JSON's own types; a dataclass with its host in front."""
    if not isinstance(value, dict | str | int | float | bool | None):
        import msgspec

        value = msgspec.to_builtins(value)
    return value if host is None else {"host": host, **value}


def gpu(device: Device) -> dict[str, Any]:
    """A GPU with its facts and whose its memory is; `gpu` is what people call it: `0`, `0.2`."""
    return {
        "gpu": device.label, **plain(device.gpu), "facts": plain(device.facts) if device.facts else None,
        "use": plain(device.use) if device.use else None,
    }  # fmt: skip


def items(kind: str, found: Sequence[Any], errors: Sequence[ConsoleError]) -> dict[str, Any]:
    """Many things, and what went wrong beside them."""
    return {
        "api_version": API_VERSION,
        "kind": kind,
        "items": list(found),
        "errors": [problem(each) for each in errors],
    }


def item(kind: str, found: Any) -> dict[str, Any]:
    """One thing."""
    return {"api_version": API_VERSION, "kind": kind, "item": found, "errors": []}


def failed(error: ConsoleError, others: Sequence[ConsoleError] = ()) -> dict[str, Any]:
    """Nothing but an error; where several hosts failed, each is in `errors`."""
    return {
        "api_version": API_VERSION,
        "kind": "Error",
        "error": problem(error),
        "errors": [problem(each) for each in others],
    }


def event(kind: str, type_: str, found: Any, error: ConsoleError | None = None) -> dict[str, Any]:
    """One line of a stream."""
    told = {"api_version": API_VERSION, "kind": kind, "type": type_, "item": found}
    return told if error is None else {**told, "error": problem(error)}


def problem(error: ConsoleError) -> dict[str, Any]:
    """An error as a value."""
    return {
        "code": error.code,
        "detail": error.detail,
        "host": error.host,
        "field": error.field,
        "hint": error.hint,
        "operation": error.operation,
        "exit_code": error.exit_code,
    }


def encode(envelope: Any, pretty: bool) -> str:
    """JSON text: indented for one answer, one line for a stream's."""
    import json

    if pretty:
        return escape_json(json.dumps(envelope, ensure_ascii=False, indent=2))
    return escape_json(json.dumps(envelope, ensure_ascii=False, separators=(",", ":")))
