"""What goes wrong as the console's caller sees it: one tree, each with a stable `code` and an exit code.

ConsoleError
├── Usage         2    the command line or a file of the user's own is wrong
├── NotFound      3
├── NotAllowed    4
├── Unreachable   5    no agent answered; nothing is known about what it did with a change
├── Conflict      7    somebody else was first; `operation` names the winner where there is one
├── TimedOut      8    the wait is over; what was asked for goes on
├── Interrupted   130  Ctrl-C
├── Refused       1    the agent said no for another reason; `code` is the agent's own
├── Malformed     1    an answer that is not what the protocol says
└── ChangeFailed  1    the change was taken, and failed

An error is also a value: a host that fails beside others that answer travels as one of these in a result.
"""

from __future__ import annotations

PARTIAL = 6
"""Exit code when some hosts did what was asked and others did not."""


class ConsoleError(Exception):
    """Base of all. `detail` says what happened and where, `hint` what to do."""

    code = "failed"
    exit_code = 1

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        host: str | None = None,
        field: str | None = None,
        hint: str | None = None,
        operation: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.host = host
        self.field = field
        self.hint = hint
        self.operation = operation


class Usage(ConsoleError):
    code, exit_code = "usage", 2


class NotFound(ConsoleError):
    code, exit_code = "not_found", 3


class NotAllowed(ConsoleError):
    code, exit_code = "not_allowed", 4


class Unreachable(ConsoleError):
    code, exit_code = "unreachable", 5


class Conflict(ConsoleError):
    code, exit_code = "conflict", 7


class TimedOut(ConsoleError):
    code, exit_code = "timed_out", 8


class Interrupted(ConsoleError):
    code, exit_code = "interrupted", 130


class Refused(ConsoleError):
    code = "refused"


class Malformed(ConsoleError):
    code = "malformed_answer"


class ChangeFailed(ConsoleError):
    code = "change_failed"


def of_status(status: int) -> type[ConsoleError]:
    """The class for an HTTP status of the agent or the gateway."""
    known: dict[int, type[ConsoleError]] = {
        401: NotAllowed, 403: NotAllowed, 404: NotFound, 409: Conflict, 412: Conflict, 504: TimedOut,
    }  # fmt: skip
    return known.get(status, Refused)


def exit_code(errors: list[ConsoleError], succeeded: int) -> int:
    """One exit code for many hosts: 6 when some did and some did not, else the weightiest of the errors'."""
    if not errors:
        return 0
    if succeeded:
        return PARTIAL
    codes = {error.exit_code for error in errors}
    if len(codes) > 1:
        codes.discard(NotFound.exit_code)
    return codes.pop() if len(codes) == 1 else 1
