"""Whatever the order of changes, what is wanted makes sense."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quarterdeck_agent.errors import Conflict
from quarterdeck_agent.protocol import OperationState, RevisionOutcome
from quarterdeck_agent.store import Store

from .making import HandClock, at, deploy, failure, new_operation


class Story(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.open()
        self.numbers: list[int] = []

    def open(self) -> None:
        self.store = Store.open(self.folder / "store.sqlite", self.folder / "backups", HandClock())

    @property
    def wanted(self):  # type: ignore[no-untyped-def]
        return self.store.deployment("digits")

    @rule(body=st.sampled_from("ABC"), stopped=st.booleans(), replicas=st.integers(1, 2))
    def deploy(self, body: str, stopped: bool, replicas: int) -> None:
        removing = self.wanted is not None and self.wanted.removing
        try:
            number = deploy(self.store, body, stopped=stopped, replicas=replicas).revision
        except Conflict:
            assert removing
            return
        assert number is not None and not removing
        self.numbers.append(number)

    @precondition(lambda self: self.wanted is not None)
    @rule(back=st.integers(0, 2))
    def promote(self, back: int) -> None:
        number = max(1, self.numbers[-1] - back)
        due = self.wanted.target.number == number and not self.wanted.removing
        assert self.store.promote("digits", number, at()) is due
        assert not due or self.wanted.live.number == number

    @precondition(lambda self: self.wanted is not None)
    @rule(back=st.integers(0, 2))
    def fail(self, back: int) -> None:
        self.store.fail("digits", max(1, self.numbers[-1] - back), failure())

    @precondition(lambda self: self.wanted is not None)
    @rule()
    def forget(self) -> None:
        self.store.forget_previous("digits")

    @precondition(lambda self: self.wanted is not None and not self.wanted.removing)
    @rule()
    def remove(self) -> None:
        self.store.mark_removing("digits", new_operation(kind="remove"))

    @precondition(lambda self: self.wanted is not None and self.wanted.removing)
    @rule()
    def finish_removal(self) -> None:
        self.store.finish_removal("digits")
        assert self.wanted is None

    @rule()
    def restart(self) -> None:
        before = self.store.wanted()
        self.store.close()
        self.open()
        assert self.store.wanted() == before

    @invariant()
    def numbers_only_grow(self) -> None:
        assert [revision.number for revision in self.store.revisions("digits")] == self.numbers[::-1]
        assert self.numbers == list(range(1, len(self.numbers) + 1))

    @invariant()
    def pointers_agree_with_outcomes(self) -> None:
        outcomes = {revision.number: revision.outcome for revision in self.store.revisions("digits")}
        serving = [number for number, outcome in outcomes.items() if outcome is RevisionOutcome.SERVING]
        pending = [number for number, outcome in outcomes.items() if outcome is RevisionOutcome.PENDING]
        wanted = self.wanted
        if wanted is None:
            assert not serving and not pending
            return
        assert serving in ([], [wanted.live.number if wanted.live else None])
        assert pending in ([], [wanted.target.number])
        if wanted.previous is not None:
            assert wanted.live.body != wanted.previous.body and wanted.replaced_at is not None
            assert not wanted.live.spec.stopped

    @invariant()
    def operations_end_with_their_revisions(self) -> None:
        states = {operation.id: operation.state for operation in self.store.operations(1000)}
        for revision in self.store.revisions("digits"):
            if revision.outcome is RevisionOutcome.SUPERSEDED:
                assert states[revision.operation] is OperationState.SUPERSEDED

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
