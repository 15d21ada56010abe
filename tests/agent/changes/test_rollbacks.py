"""Which revision a rollback goes to after something failed, and what its plan says of a target that did."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.errors import NotFound
from quarterdeck_agent.protocol import Failure, FailureReason, RollbackRequest
from quarterdeck_agent.store import Store
from quarterdeck_agent.wanted import Instant
from tests.agent.changes.test_changes import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = Store.open(tmp_path / "store.sqlite", tmp_path / "backups", SystemClock())
    yield Desk(store)
    store.close()


def crash(desk: Desk, times: int = 3, *, ago: float = 5.0, reason: FailureReason = FailureReason.EXITED) -> None:
    """The live revision's replica has ended by itself, the last time so many seconds ago."""
    (d,) = desk.store.wanted().deployments
    assert d.live is not None
    for number in range(times):
        failure = Failure(datetime.now(UTC) - timedelta(seconds=ago), "run", reason, "exited with code 3")
        desk.store.record_crash("toy", d.live.body, Instant("boot", float(number)), failure)


def roll_back(desk: Desk, to: int | None = None) -> int:
    count = len(desk.store.operations(1000))
    number = desk.changes.change("rollback", "toy", RollbackRequest(to=to), "ana", f"op-{count}").revision
    assert number is not None
    desk.store.promote("toy", number, Instant("boot", 99.0))
    return number


def default(desk: Desk) -> str:
    return desk.changes.preview("rollback", "toy", RollbackRequest()).command


def test_after_a_rollback_from_what_failed_the_next_one_does_not_offer_it_again(desk: Desk) -> None:
    for number in ("1", "2"):
        desk.serve(desk.version(number))
    crash(desk)
    roll_back(desk)
    with pytest.raises(NotFound) as caught:
        default(desk)
    assert "2 (toy:2) was failing when it was replaced" in caught.value.detail
    assert "qd rollback toy --to 2" in (caught.value.hint or "")


def test_what_served_well_before_what_failed_is_offered_and_it_is_said_what_is_passed_over(desk: Desk) -> None:
    for number in ("1", "2", "3"):
        desk.serve(desk.version(number))
    crash(desk)
    roll_back(desk)  # to 2, as revision 4
    preview = desk.changes.preview("rollback", "toy", RollbackRequest())
    assert preview.command == "qd rollback toy --to 1"
    assert "revision 3 (toy:3) is passed over: failing when replaced" in preview.warnings


def test_what_failed_can_be_named_and_its_plan_says_how_it_failed(desk: Desk) -> None:
    for number in ("1", "2"):
        desk.serve(desk.version(number))
    crash(desk)
    roll_back(desk)
    preview = desk.changes.preview("rollback", "toy", RollbackRequest(to=2))
    assert preview.warnings[0] == "revision 2 (toy:2) was failing when it was replaced: exited with code 3"
    assert roll_back(desk, to=2) == 4


def test_an_older_revision_of_the_form_that_failed_is_not_offered_in_its_place(desk: Desk) -> None:
    for number in ("1", "2", "3"):
        desk.serve(desk.version(number))
    desk.serve("toy:2")
    crash(desk)
    desk.serve("toy:3")
    assert default(desk) == "qd rollback toy --to 1"


def test_what_was_deployed_over_while_it_crashed_again_and_again_is_passed_over_too(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    desk.serve(desk.version("2"))
    crash(desk, 2)
    desk.serve(desk.version("3"))
    assert default(desk) == "qd rollback toy --to 1"


def test_one_crash_long_ago_or_just_once_before_a_deploy_is_no_failure(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    desk.serve(desk.version("2"))
    crash(desk, 1)
    desk.serve(desk.version("3"))
    assert default(desk) == "qd rollback toy --to 2"
    crash(desk, 3, ago=3600.0)
    desk.serve(desk.version("4"))
    assert default(desk) == "qd rollback toy --to 3"


def test_one_crash_after_which_somebody_rolled_back_is_a_failure(desk: Desk) -> None:
    for number in ("1", "2", "3"):
        desk.serve(desk.version(number))
    crash(desk, 1)
    roll_back(desk)
    assert default(desk) == "qd rollback toy --to 1"


def test_gpus_that_containers_lost_are_no_fault_of_the_version(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    desk.serve(desk.version("2"))
    crash(desk, reason=FailureReason.GPU_LOST)
    roll_back(desk)
    assert default(desk) == "qd rollback toy --to 2"


def test_a_rollout_is_taken_back_also_to_a_revision_that_crashes_but_not_without_a_word(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    crash(desk, 2)
    desk.deploy(desk.version("2"))
    preview = desk.changes.preview("rollback", "toy", RollbackRequest())
    assert preview.command == "qd rollback toy --to 1"
    assert preview.warnings[0] == "revision 1 (toy:1) has crashed 2 times of late: exited with code 3"


def test_a_target_that_never_served_is_said_to_be_one(desk: Desk) -> None:
    desk.serve(desk.version("1"))
    failed = desk.deploy(desk.version("2")).revision
    assert failed is not None
    desk.store.fail("toy", failed, Failure(datetime.now(UTC), "golden", FailureReason.GOLDEN_MISMATCH, "0.3 is off"))
    preview = desk.changes.preview("rollback", "toy", RollbackRequest(to=2))
    assert preview.warnings[0] == "revision 2 (toy:2) never served: 0.3 is off"
