"""What happens to what is wanted: proposed, promoted, failed, rolled back, removed."""

from __future__ import annotations

import threading

import pytest

from quarterdeck_agent.errors import Conflict, NotFound
from quarterdeck_agent.protocol import Change, FailureReason, OperationState, RevisionOutcome
from quarterdeck_agent.store import NewOperation, NewRevision, Store

from .making import at, deploy, digits, failure, new_operation, serving, spec


def outcomes(store: Store) -> list[str]:
    return [revision.outcome.value for revision in store.revisions("digits")][::-1]


def test_a_first_deploy_is_wanted_and_pending(store: Store) -> None:
    operation = deploy(store, "A", generation=0)
    wanted = digits(store)
    assert (operation.state, operation.revision, operation.by) == (OperationState.PENDING, 1, "ada")
    assert (wanted.generation, wanted.target.number, wanted.target.body, wanted.live) == (1, 1, "A", None)
    assert wanted.target.outcome is RevisionOutcome.PENDING and not wanted.target.passed


def test_a_repeated_operation_gives_the_first_result_and_changes_nothing(store: Store) -> None:
    first = deploy(store, "A", id="x")
    again = store.propose(NewRevision("digits", spec(replicas=9), "B"), new_operation("x"), 77)
    assert again == (first, True)
    assert digits(store).generation == 1 and len(store.revisions("digits")) == 1


def test_an_operation_id_cannot_be_used_for_another_change(store: Store) -> None:
    deploy(store, "A", id="x")
    with pytest.raises(Conflict):
        store.mark_removing("digits", new_operation("x", kind="remove"))
    assert not digits(store).removing


def test_who_saw_an_older_generation_loses_and_is_told_the_winner(store: Store) -> None:
    deploy(store, "A", generation=0)
    winner = deploy(store, "B", generation=1)
    for generation in (0, 1, 3):
        with pytest.raises(Conflict) as caught:
            deploy(store, "C", generation=generation)
        assert caught.value.operation == winner.id
    assert digits(store).target.body == "B"


def test_of_many_deploys_at_once_one_wins(store: Store) -> None:
    won: list[str] = []
    lost: list[str | None] = []
    start = threading.Barrier(8)

    def run(number: int) -> None:
        start.wait(10)
        try:
            won.append(deploy(store, f"B{number}", generation=0).id)
        except Conflict as conflict:
            lost.append(conflict.operation)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(won) == 1 and lost == won * 7


def test_a_newer_wish_supersedes_one_that_has_not_come_through(store: Store) -> None:
    first = deploy(store, "A")
    deploy(store, "B")
    assert outcomes(store) == ["superseded", "pending"]
    assert store.operation(first.id).state is OperationState.SUPERSEDED
    assert store.promote("digits", 1, at()) is False
    assert digits(store).live is None


def test_promoting_hands_over_and_keeps_the_old_one_warm(store: Store) -> None:
    serving(store, "A")
    serving(store, "B", seconds=7.0)
    wanted = digits(store)
    assert (wanted.live, wanted.previous) != (None, None)
    assert wanted.live is not None and wanted.live.number == 2 and wanted.live.passed
    assert wanted.previous is not None and wanted.previous.number == 1
    assert wanted.replaced_at == at(7.0)
    assert outcomes(store) == ["replaced", "serving"]


def test_no_operation_goes_on_for_ever_when_its_revision_is_replaced_before_the_gateway_confirmed_it(
    store: Store,
) -> None:
    first = deploy(store, "one")
    assert first.revision is not None and store.promote("digits", first.revision, at())
    serving(store, "two")
    assert store.operation(first.id).state is OperationState.SUPERSEDED


def test_an_operation_that_succeeded_stays_so_when_its_revision_is_replaced(store: Store) -> None:
    first = deploy(store, "one")
    assert first.revision is not None and store.promote("digits", first.revision, at())
    store.finish_operation(first.id, OperationState.SUCCEEDED)
    serving(store, "two")
    assert store.operation(first.id).state is OperationState.SUCCEEDED


def test_promoting_again_changes_nothing(store: Store) -> None:
    serving(store, "A")
    serving(store, "B", seconds=7.0)
    before = digits(store)
    assert store.promote("digits", 2, at(99.0))
    assert digits(store) == before


def test_scaling_keeps_no_second_set_of_the_same_replicas_warm(store: Store) -> None:
    serving(store, "A")
    serving(store, "A", replicas=3)
    assert digits(store).previous is None
    assert outcomes(store) == ["replaced", "serving"]


def test_scaling_after_a_deploy_keeps_the_way_back_warm(store: Store) -> None:
    serving(store, "A")
    serving(store, "B", seconds=7.0)
    serving(store, "B", seconds=9.0, replicas=3)
    wanted = digits(store)
    assert wanted.previous is not None and (wanted.previous.number, wanted.replaced_at) == (1, at(7.0))


def test_rolling_back_to_the_warm_one_makes_the_other_one_warm(store: Store) -> None:
    serving(store, "A")
    serving(store, "B")
    store.propose(NewRevision("digits", spec(), "A", rollback_of=1), new_operation(kind="rollback"))
    assert digits(store).target.passed
    store.promote("digits", 3, at(9.0))
    wanted = digits(store)
    assert wanted.live is not None and wanted.live.body == "A"
    assert wanted.previous is not None and wanted.previous.number == 2
    assert store.revision("digits", 3).rollback_of == 1


def test_stopping_keeps_nothing_warm_and_proves_nothing(store: Store) -> None:
    serving(store, "A")
    serving(store, "B")
    deploy(store, "B2", stopped=True)
    store.promote("digits", 3, at())
    wanted = digits(store)
    assert wanted.previous is None
    assert wanted.live is not None and not wanted.live.passed


def test_a_failed_deploy_leaves_the_live_revision_wanted_and_its_record_whole(store: Store) -> None:
    serving(store, "A")
    operation = deploy(store, "B")
    assert store.fail("digits", 2, failure())
    wanted = digits(store)
    assert wanted.target == wanted.live and wanted.target.number == 1
    assert outcomes(store) == ["serving", "failed"]
    assert store.revision("digits", 2).failure == failure()
    told = store.operation(operation.id)
    assert (told.state, told.code, told.detail) == (OperationState.FAILED, "never_ready", "it never answered")


def test_a_failed_first_deploy_stays_the_target(store: Store) -> None:
    deploy(store, "A")
    store.fail("digits", 1, failure())
    wanted = digits(store)
    assert wanted.live is None
    assert (wanted.target.outcome, wanted.target.reason) == (RevisionOutcome.FAILED, FailureReason.NEVER_READY)
    deploy(store, "B")
    assert outcomes(store) == ["failed", "pending"]


def test_a_live_revision_that_fails_can_serve_again(store: Store) -> None:
    serving(store, "A")
    store.fail("digits", 1, failure())
    assert digits(store).target.outcome is RevisionOutcome.FAILED
    store.promote("digits", 1, at())
    assert outcomes(store) == ["serving"] and digits(store).target.reason is None


def test_a_failure_of_a_revision_nobody_waits_for_is_ignored(store: Store) -> None:
    deploy(store, "A")
    deploy(store, "B")
    assert store.fail("digits", 1, failure()) is False
    assert outcomes(store) == ["superseded", "pending"]


def test_crashes_belong_to_the_body_and_can_be_forgotten(store: Store) -> None:
    serving(store, "A")
    for second in range(60):
        store.record_crash("digits", "A", at(float(second)), failure(FailureReason.EXITED))
    crashes = digits(store).target.crashes
    assert crashes == tuple(at(float(second)) for second in range(10, 60))
    assert store.revision("digits", 1).failure == failure(FailureReason.EXITED)
    store.clear_crashes("digits", "A")
    assert digits(store).target.crashes == ()


def test_holding_image_and_passed_are_remembered(store: Store) -> None:
    deploy(store, "A")
    store.set_holding("digits", at(5.0))
    store.set_image("digits", 1, "model@sha256:1")
    store.set_passed("digits", "A")
    wanted = digits(store)
    assert (wanted.holding, wanted.holding_since) == (True, at(5.0))
    assert (wanted.target.image, wanted.target.passed) == ("model@sha256:1", True)
    store.set_holding("digits", None)
    assert (digits(store).holding, digits(store).holding_since) == (False, None)


def test_a_cold_previous_is_no_longer_wanted(store: Store) -> None:
    serving(store, "A")
    serving(store, "B")
    store.forget_previous("digits")
    assert (digits(store).previous, digits(store).replaced_at) == (None, None)


def test_a_removed_deployment_is_gone_but_its_history_is_not(store: Store) -> None:
    serving(store, "A")
    pending = deploy(store, "B")
    removal, repeated = store.mark_removing("digits", new_operation("rm", kind="remove"), 2)
    assert not repeated and digits(store).removing
    assert store.operation(pending.id).state is OperationState.SUPERSEDED
    assert store.mark_removing("digits", new_operation("rm", kind="remove")) == (removal, True)
    with pytest.raises(Conflict) as caught:
        deploy(store, "C")
    assert caught.value.operation == "rm"
    store.finish_removal("digits")
    assert store.deployment_names() == () and outcomes(store) == ["replaced", "superseded"]
    assert store.operation("rm").state is OperationState.SUCCEEDED
    with pytest.raises(NotFound):
        store.mark_removing("digits", new_operation(kind="remove"))


def test_numbers_and_generations_go_on_after_a_removal(store: Store) -> None:
    serving(store, "A")
    store.mark_removing("digits", new_operation(kind="remove"))
    store.finish_removal("digits")
    with pytest.raises(Conflict):
        deploy(store, "B", generation=2)
    assert deploy(store, "B", generation=0).revision == 2
    assert digits(store).generation == 3


def test_history_is_newest_first_and_can_be_narrowed(store: Store) -> None:
    deploy(store, "A", id="1")
    store.propose(NewRevision("other", spec(), "A"), new_operation("2", target="other"))
    changes = (Change("replicas", "1", "2"),)
    store.propose(NewRevision("digits", spec(), "B"), NewOperation("3", "scale", "digits", "bob", changes=changes))
    assert [operation.id for operation in store.operations(10)] == ["3", "2", "1"]
    assert [operation.id for operation in store.operations(1)] == ["3"]
    assert [operation.id for operation in store.operations(10, "digits")] == ["3", "1"]
    assert store.operation("3").changes == changes


def test_unknown_things_are_not_found(store: Store) -> None:
    assert store.revisions("nobody") == () and store.deployment("nobody") is None
    for call in (lambda: store.operation("no"), lambda: store.revision("digits", 1), lambda: store.version("x:1")):
        with pytest.raises(NotFound):
            call()
