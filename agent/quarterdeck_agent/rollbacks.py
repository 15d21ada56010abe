"""Which revision a rollback goes to when none is named, and what is to be said of the one it goes to. Pure.

It is the newest one before the current one that served, runs something else, and was not left because it failed. One
that failed can still be named; then it is said that it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quarterdeck_agent.counts import CRASH_WINDOW
from quarterdeck_agent.protocol import FailureReason, Revision, RevisionOutcome, Spec


@dataclass(frozen=True, slots=True)
class Past:
    """The revisions of one deployment, newest first, and by number how often replicas of each's body crashed of late.

    Crashes are forgotten once a revision has run well for a while, so what is left of them is how it was at the end.
    """

    revisions: Sequence[Revision]
    crashes: Mapping[int, int]

    def before(self, current: Revision) -> tuple[Revision | None, tuple[Revision, ...]]:
        """The newest one that served well before `current`, and newer ones that are passed over since they failed."""
        failed: list[Revision] = []
        for revision in self.revisions:
            served = revision.number < current.number and revision.served_at is not None
            if not served or revision.spec.stopped or same_form(revision.spec, current.spec):
                continue
            if any(same_form(revision.spec, other.spec) for other in failed):
                continue
            if not self.was_failing(revision):
                return revision, tuple(failed)
            failed.append(revision)
        return None, tuple(failed)

    def was_failing(self, revision: Revision) -> bool:
        """Whether a revision that served was left because it failed.

        It crashed shortly before it was replaced, and either more than once or somebody rolled it back. That a
        container lost its GPUs is no fault of what ran in it.
        """
        failure, ended = revision.failure, revision.ended_at
        if revision.outcome is RevisionOutcome.FAILED:
            return True
        if failure is None or ended is None or failure.reason is FailureReason.GPU_LOST:
            return False
        if (ended - failure.at).total_seconds() > CRASH_WINDOW:
            return False
        return self.crashes.get(revision.number, 0) > 1 or self._rolled_back(revision)

    def _rolled_back(self, revision: Revision) -> bool:
        later = [each for each in self.revisions if each.number > revision.number and each.served_at is not None]
        return bool(later) and later[-1].rollback_of is not None

    def doubts(self, target: Revision, live: int | None) -> tuple[str, ...]:
        """What speaks against going back to `target`, while revision `live` is the one that serves."""
        name = f"revision {target.number} ({target.spec.label})"
        said = f": {target.failure.message}" if target.failure is not None else ""
        count = self.crashes.get(target.number, 0)
        if target.number == live:
            return (f"{name} has crashed {count} time{'s' if count > 1 else ''} of late{said}",) if count else ()
        if target.served_at is None:
            return (f"{name} never served{said}",)
        return (f"{name} was failing when it was replaced{said}",) if self.was_failing(target) else ()


def passed_over(failed: Sequence[Revision]) -> tuple[str, ...]:
    """What was left out for the reason that it failed, in words."""
    names = " and ".join(f"revision {each.number} ({each.spec.label})" for each in failed)
    return (f"{names} {'is' if len(failed) == 1 else 'are'} passed over: failing when replaced",) if failed else ()


def same_form(one: Spec, other: Spec) -> bool:
    """Whether two specs run the same thing, however many times and however limited."""
    return (one.version, one.env) == (other.version, other.env)
