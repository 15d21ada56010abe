"""Versions, steps and ends of operations, and what a reader gets."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from quarterdeck_agent.errors import Conflict, InvalidInput, NotFound
from quarterdeck_agent.protocol import ManifestFile, OperationState, StepRecord, Version
from quarterdeck_agent.store import NewRevision, Store

from .making import at, deploy, digits, new_operation, push, serving, spec, version


def test_a_version_comes_back_as_it_was_given(store: Store) -> None:
    given = Version(
        "a" * 64,
        "x:1",
        "x",
        "python",
        3,
        (ManifestFile("é/w", 3, "b" * 64),),
        datetime(2026, 1, 1, tzinfo=UTC),
        "ada",
        config={"golden": [{"body": {"x": [1, 2.5, None, "é"]}}]},
        pickle_allowed=True,
        card="# Card",
        formats=("gguf",),
    )
    assert store.add_version(given, b"manifest", push("x:1")) == given
    assert store.versions() == (given,)
    assert store.version("x:1") == store.version("a" * 64) == store.version("a" * 8) == given
    assert store.operations(1)[0].kind == "push"


def test_what_a_version_ran_on_is_kept_and_written_only_when_it_is_new(store: Store) -> None:
    store.add_version(version(), b"", push())
    facts = {"torch": "2.13.0", "device": "cuda:0"}
    store.set_facts(version().id, facts)
    assert store.version("digits:1").facts == facts
    before = store.writes
    store.set_facts(version().id, dict(facts))
    store.set_facts("f" * 64, facts)
    assert store.writes == before


def test_a_label_names_one_id_for_ever_also_after_its_removal(store: Store) -> None:
    store.add_version(version(), b"", push())
    with pytest.raises(Conflict):
        store.add_version(version(id="b" * 64), b"", push())
    store.remove_version("digits:1", new_operation(kind="remove-version", target="digits:1"))
    assert store.versions() == ()
    with pytest.raises(NotFound, match="was removed"):
        store.version("digits:1")
    with pytest.raises(Conflict):
        store.add_version(version(id="b" * 64), b"", push())
    assert store.add_version(version(), b"", push()) == store.version("digits:1")


def test_the_same_push_again_gives_the_first_version(store: Store) -> None:
    first = store.add_version(version(), b"", push(id="p"))
    assert store.add_version(version(), b"", push(id="p")) == first
    assert len(store.operations(10)) == 1


def test_a_prefix_that_fits_two_ids_is_refused(store: Store) -> None:
    for last in "01":
        store.add_version(version(f"x:{last}", "a" * 63 + last), b"", push())
    with pytest.raises(InvalidInput, match=r"2 ids \(x:0, x:1\)"):
        store.version("a" * 8)
    assert store.version("a" * 63 + "1").label == "x:1"
    for reference in ("a" * 7, "%", "", "x", "A" * 64, "'; DROP TABLE versions; --"):
        with pytest.raises(NotFound):
            store.version(reference)


def test_a_version_in_use_or_in_recent_history_cannot_be_removed(store: Store) -> None:
    store.add_version(version(), b"", push())
    serving(store, "A")
    with pytest.raises(Conflict, match="revision 1 of digits"):
        store.remove_version("digits:1")
    for number in range(5):
        with pytest.raises(Conflict):
            store.remove_version("digits:1")
        serving(store, f"B{number}", version="b" * 64)
    assert store.remove_version("digits:1").id == "a" * 64


def test_a_version_that_is_kept_warm_cannot_be_removed_but_one_of_a_removed_deployment_can(store: Store) -> None:
    store.add_version(version(), b"", push())
    serving(store, "A")
    serving(store, "B", version="b" * 64)
    for replicas in range(2, 8):
        serving(store, "B", version="b" * 64, replicas=replicas)
    with pytest.raises(Conflict):
        store.remove_version("digits:1")
    store.mark_removing("digits", new_operation(kind="remove"))
    store.finish_removal("digits")
    store.remove_version("digits:1")


def test_steps_are_recorded_with_the_operation_and_its_revision(store: Store) -> None:
    operation = deploy(store, "A")
    steps = (StepRecord("start", "running", datetime(2026, 1, 1, tzinfo=UTC), 0.25, "é"),)
    before = store.wanted()
    store.record_steps(operation.id, steps)
    assert store.wanted() is before
    assert store.operation(operation.id).state is OperationState.RUNNING
    assert store.revision("digits", 1).steps == store.operation(operation.id).steps == steps


def test_the_first_end_of_an_operation_stands(store: Store) -> None:
    operation = deploy(store, "A")
    store.finish_operation(operation.id, OperationState.FAILED, "exited", "it ended")
    store.finish_operation(operation.id, OperationState.SUCCEEDED)
    ended = store.operation(operation.id)
    assert (ended.state, ended.code, ended.detail) == (OperationState.FAILED, "exited", "it ended")
    assert ended.finished_at is not None


def test_a_spec_comes_back_as_it_was_given(store: Store) -> None:
    given = spec(replicas=3, env={"A": "é\n"}, warm=0.0, dwell=0.5, golden=False, stopped=True, restart=4)
    store.propose(NewRevision("digits", given, "A", "hold", "the GPU is full", "try"), new_operation())
    revision = store.revision("digits", 1)
    assert digits(store).target.spec == revision.spec == given
    assert (revision.handover, revision.handover_why, revision.why) == ("hold", "the GPU is full", "try")


def test_what_is_wanted_is_read_once_and_listeners_hear_of_changes(store: Store) -> None:
    heard: list[int] = []
    store.listen(lambda: heard.append(store.wanted().sequence))
    deploy(store, "A")
    assert store.wanted() is store.wanted()
    store.set_passed("digits", "A")
    assert heard == [1, 2]


def test_the_peak_of_gpu_memory_only_grows_and_is_told_with_every_revision_of_its_body(store: Store) -> None:
    serving(store, "A")
    assert (digits(store).target.gpu_memory_peak, store.revision("digits", 1).gpu_memory_peak) == (None, None)
    for seen in (3 << 30, 2 << 30):
        store.record_gpu_memory("digits", "A", seen)
    serving(store, "B", version="b" * 64)
    serving(store, "A")
    assert [one.gpu_memory_peak for one in store.revisions("digits")] == [3 << 30, None, 3 << 30]
    wanted = digits(store)
    assert wanted.live is not None and wanted.previous is not None
    assert (wanted.live.gpu_memory_peak, wanted.previous.gpu_memory_peak) == (3 << 30, None)


def test_a_body_not_measured_yet_is_expected_to_need_what_its_version_needed(store: Store) -> None:
    serving(store, "A")
    serving(store, "A2", restart=1)
    store.record_gpu_memory("digits", "A", 1 << 30)
    store.record_gpu_memory("digits", "A2", 2 << 30)
    serving(store, "A3", restart=2)
    assert digits(store).target.gpu_memory_peak == 2 << 30
    assert store.revision("digits", 3).gpu_memory_peak is None, "a record tells only what was seen"
    assert store.gpu_memory_peak("digits", "A", "a" * 64) == 1 << 30
    assert store.gpu_memory_peak("digits", "new", "a" * 64) == 2 << 30
    assert store.gpu_memory_peak("digits", "new", "b" * 64) is None
    assert store.gpu_memory_peak("other", "A", "a" * 64) is None


def test_what_a_body_held_that_never_passed_the_gate_is_no_measure_of_what_it_needs(store: Store) -> None:
    """It may have ended while it was loading, or be loading still."""
    deploy(store, "A")
    store.record_gpu_memory("digits", "A", 1 << 30)
    assert store.revision("digits", 1).gpu_memory_peak == 1 << 30
    assert store.gpu_memory_peak("digits", "A", "a" * 64) is None
    assert digits(store).target.gpu_memory_peak is None
    assert store.promote("digits", 1, at())
    assert store.gpu_memory_peak("digits", "A", "a" * 64) == 1 << 30


def test_the_peak_of_a_deployment_that_is_gone_or_unknown_is_not_recorded(store: Store) -> None:
    serving(store, "A")
    store.mark_removing("digits", new_operation(kind="remove"))
    store.finish_removal("digits")
    for name in ("digits", "other"):
        store.record_gpu_memory(name, "A", 1 << 30)
    assert store.revision("digits", 1).gpu_memory_peak is None and store.revisions("other") == ()
