"""Builders for the tests of the store, and a clock whose hands the test turns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count

from quarterdeck_agent.protocol import Failure, FailureReason, Gpu, Operation, OperationState, Spec, Version
from quarterdeck_agent.store import NewOperation, NewRevision, Store
from quarterdeck_agent.wanted import Instant, WantedDeployment

_numbers = count(1)


class HandClock:
    """Stands still but for one second at each look at the wall."""

    boot_id = "boot-1"

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        self.seconds += 1
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)


def at(seconds: float = 1.0) -> Instant:
    return Instant("boot-1", seconds)


def new_operation(id: str | None = None, kind: str = "deploy", target: str = "digits") -> NewOperation:
    return NewOperation(id or f"operation-{next(_numbers)}", kind, target, "ada")


def spec(version: str = "a" * 64, **fields: object) -> Spec:
    return Spec(version=version, label="digits:1", **fields)  # type: ignore[arg-type]


def deploy(
    store: Store,
    body: str,
    *,
    name: str = "digits",
    id: str | None = None,
    generation: int | None = None,
    **fields: object,
) -> Operation:
    revision = NewRevision(name, spec(**fields), body)  # type: ignore[arg-type]
    return store.propose(revision, new_operation(id, target=name), generation)[0]


def serving(store: Store, body: str, seconds: float = 1.0, **fields: object) -> int:
    """Deploy and promote; the number of the revision."""
    number = deploy(store, body, **fields).revision  # type: ignore[arg-type]
    assert number is not None
    assert store.promote("digits", number, at(seconds))
    return number


def failure(reason: FailureReason = FailureReason.NEVER_READY) -> Failure:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    gpus = (Gpu(0, "GPU-1", "A100", memory_total=80 << 30),)
    return Failure(
        when, "start", reason, "it never answered", exit_code=137, last_lines=("line 1", "line 2"), gpus=gpus
    )


def digits(store: Store) -> WantedDeployment:
    found = store.deployment("digits")
    assert found is not None
    return found


def version(label: str = "digits:1", id: str = "a" * 64) -> Version:
    name = label.partition(":")[0]
    return Version(id, label, name, "python", 0, (), datetime(2026, 1, 1, tzinfo=UTC), "ada", config={"name": name})


def push(label: str = "digits:1", id: str | None = None) -> Operation:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Operation(id or f"push-{next(_numbers)}", "push", label, "ada", when, OperationState.SUCCEEDED)
