"""The agent's exceptions, each with a stable `code` and the HTTP status it becomes at the API's edge.

AgentError
├── InvalidInput        422  what was sent is wrong; `field` says where
├── NotFound            404
├── Forbidden           403
├── Conflict            409  somebody else was first; `operation` names the winner where there is one
├── TooLarge            413
├── NoSpace             507  the disk is full or nearly so
├── Corrupt             500  bytes on disk are not what they were when they were verified
├── EngineError         502  the engine refused or failed
│   ├── EngineUnresponsive 503  it did not answer in time
│   └── StartRefused    409  the engine would not start what was asked, or made something else of it
├── GatewayError        502
└── SettingsError       500  settings that cannot work; raised at start only
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of all errors that are told to a caller. `detail` says what happened and where, `hint` what to do."""

    code = "internal"
    status = 500
    title = "Something went wrong in the agent"

    def __init__(
        self, detail: str, *, field: str | None = None, hint: str | None = None, operation: str | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.hint = hint
        self.operation = operation


class InvalidInput(AgentError):
    code, status, title = "invalid_input", 422, "The request is not valid"


class NotFound(AgentError):
    code, status, title = "not_found", 404, "There is no such thing on this host"


class Forbidden(AgentError):
    code, status, title = "not_allowed", 403, "Not allowed"


class Conflict(AgentError):
    code, status, title = "conflict", 409, "Somebody else changed it first"


class TooLarge(AgentError):
    code, status, title = "too_large", 413, "The request is too large"


class NoSpace(AgentError):
    code, status, title = "no_space", 507, "The disk is full"


class Corrupt(AgentError):
    code, status, title = "corrupt", 500, "Stored bytes are not what they were"


class EngineError(AgentError):
    code, status, title = "engine_failed", 502, "The engine failed"


class EngineUnresponsive(EngineError):
    code, status, title = "engine_unresponsive", 503, "The engine does not answer"


class StartRefused(EngineError):
    code, status, title = "start_refused", 409, "The replica was refused"


class GatewayError(AgentError):
    code, status, title = "gateway_failed", 502, "The gateway failed"


class SettingsError(AgentError):
    code, status, title = "bad_settings", 500, "The agent's settings cannot work"
