"""Tells the board what the reconciler sees: deployments, revisions, operations and how far their steps have come.

Works out nothing that a plan depends on, and never asks the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Literal

from quarterdeck_agent.board import Board
from quarterdeck_agent.bundle import public, public_version
from quarterdeck_agent.clock import Clock
from quarterdeck_agent.counts import rolling
from quarterdeck_agent.drivers.base import Progress, Resources
from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.observer import Observer
from quarterdeck_agent.performing import Recipe
from quarterdeck_agent.places import waits_for
from quarterdeck_agent.protocol import DeploymentStatus, Failure, Operation, Revision, RevisionOutcome, StepRecord
from quarterdeck_agent.seen import Seen, SeenReplica
from quarterdeck_agent.status import Facts, Phase, at_rest, deployment_status, rollout_phase
from quarterdeck_agent.store import Store
from quarterdeck_agent.wanted import Wanted, WantedDeployment, WantedRevision

OPERATIONS_SHOWN = 50
REVISIONS_SHOWN = 20

_Facts = tuple[WantedDeployment, tuple[SeenReplica, ...], tuple[Revision, ...], frozenset[str]]
WAITS = ("stage", "hold", "drain", "memory", "start", "ready")


class Reporter:
    """Keeps the board's slow facts current. Gauges are the sampler's."""

    def __init__(
        self,
        board: Board,
        store: Store,
        observer: Observer,
        recipes: Callable[[WantedRevision], Recipe],
        clock: Clock,
        gateway_url: str,
        engine: str,
    ) -> None:
        self._board = board
        self._store = store
        self._observer = observer
        self._recipes = recipes
        self._clock = clock
        self._gateway_url = gateway_url
        self._engine = engine
        self._cooked: dict[tuple[str, str], Recipe] = {}
        self._steps: dict[str, list[StepRecord]] = {}
        self._entered: dict[str, float] = {}
        self._progress: dict[str, str] = {}
        self._history: dict[str, tuple[Revision, ...]] = {}
        self._still: dict[str, tuple[_Facts, DeploymentStatus]] = {}
        self._writes_read = -1
        self._read_at = -1

    def recipe(self, revision: WantedRevision) -> Recipe:
        """The recipe of a revision, worked out once. Blocks on the store the first time."""
        key = (revision.spec.version, revision.body)
        if key not in self._cooked:
            self._cooked[key] = self._recipes(revision)
        return self._cooked[key]

    def known_asks(self, revision: WantedRevision) -> Resources | None:
        """The same without blocking; `None` when the recipe is not worked out yet."""
        recipe = self._cooked.get((revision.spec.version, revision.body))
        return None if recipe is None else recipe.model.resources

    def asks(self, revision: WantedRevision) -> Resources:
        """What one replica of a revision claims; nothing when its version cannot be read, which its start will tell."""
        try:
            return self.recipe(revision).model.resources
        except AgentError:
            return Resources()

    # --- the board ---------------------------------------------------------------------------------------------

    async def publish(self, wanted: Wanted, seen: Seen) -> None:
        """Publish everything that is different from before."""
        if wanted.sequence != self._read_at:
            self._history = {d.name: await asyncio.to_thread(self._store.revisions, d.name) for d in wanted.deployments}
            self._read_at = wanted.sequence
            self._publish_history()
        for d in wanted.deployments:
            if rolling(d):
                await self._track(d.target.operation, self._phase(d, seen, self._waits(d, seen)))
            else:
                await self._end_steps(d)
        self._publish_parts(seen)
        self._publish_deployments(wanted, seen)
        await self._publish_operations()

    def _publish_parts(self, seen: Seen) -> None:
        for part in self._observer.parts.values():
            self._board.publish("part", part.name, part)

    def _publish_deployments(self, wanted: Wanted, seen: Seen) -> None:
        now, wall = self._clock.now(), self._clock.wall()
        statuses = {}
        for d in wanted.deployments:
            statuses[d.name] = self._status(d, seen, now, wall)
        self._board.publish_all("deployment", statuses)
        self._still = {name: still for name, still in self._still.items() if name in statuses}

    def _status(self, d: WantedDeployment, seen: Seen, now: float, wall: datetime) -> DeploymentStatus:
        """A deployment's status; that of one at rest is worked out once."""
        facts = (d, seen.of(d.name), self._history.get(d.name, ()), seen.ailing)
        known = self._still.get(d.name)
        if known is not None and known[0] == facts:
            return known[1]
        status = deployment_status(d, seen, self._facts(d, self._waits(d, seen)), now, wall)
        if at_rest(d, status):
            self._still[d.name] = (facts, status)
        return status

    def _publish_history(self) -> None:
        shown = {}
        for name, revisions in self._history.items():
            for revision in revisions[:REVISIONS_SHOWN]:
                shown[f"{name}/{revision.number}"] = public(revision)
        self._board.publish_all("revision", shown)

    async def _publish_operations(self) -> None:
        writes = self._store.writes
        if writes == self._writes_read:
            return
        self._writes_read = writes
        operations = await asyncio.to_thread(self._store.operations, OPERATIONS_SHOWN)
        self._board.publish_all("operation", {o.id: self.with_steps(o) for o in operations})
        versions = await asyncio.to_thread(self._store.versions)
        self._board.publish_all("version", {version.id: public_version(version) for version in versions})

    def with_steps(self, operation: Operation) -> Operation:
        """An operation with its steps as they stand this moment."""
        steps = self._steps.get(operation.id)
        return operation if steps is None else replace(operation, steps=tuple(steps))

    def _waits(self, d: WantedDeployment, seen: Seen) -> str:
        """What keeps replicas from being started, in words; nothing as long as it is not known what they ask for."""
        asks = self.known_asks(d.target)
        live_asks = self.known_asks(d.live) if d.live is not None else None
        return "" if asks is None else waits_for(d, asks, live_asks, seen, self._clock.now())

    def _facts(self, d: WantedDeployment, waits: str) -> Facts:
        serving = d.live or d.target
        history = self._history.get(d.name, ())
        shown = next((r for r in history if r.number == serving.number), None)
        try:
            recipe = self.recipe(serving)
            path = recipe.launch.predict_path.replace("{name}", recipe.model.name)
        except AgentError:
            path = "/"
        since = shown.served_at or shown.created_at if shown else self._clock.wall()
        return Facts(
            endpoint=f"{self._gateway_url}/{d.name}",
            predict_path=path,
            since=since,
            by=shown.by if shown else "",
            engine=self._engine,
            failure=_failure(d, history),
            crash=_crash(d, history),
            waits=waits,
        )

    # --- steps -------------------------------------------------------------------------------------------------

    def progress(self, deployment: str, progress: Progress) -> None:
        """A long step tells how far it has come. May be called from any thread."""
        share = f" {progress.done / progress.total:.0%}" if progress.total else ""
        self._progress[deployment] = f"{progress.text}{share}"

    def _phase(self, d: WantedDeployment, seen: Seen, waits: str) -> Phase:
        phase = rollout_phase(d, seen, self._clock.now(), waits)
        if phase.name == "stage":
            return replace(phase, detail=self._progress.get(d.name, phase.detail))
        self._progress.pop(d.name, None)
        if phase.name == "golden":
            count = len(self.recipe(d.target).model.golden)
            return replace(phase, detail=f"{count} to send" if count else "the version has none")
        return phase

    async def _track(self, operation: str, phase: Phase) -> None:
        """Note the phase a rollout is in: a new one ends the one before."""
        steps = self._steps.get(operation)
        if steps is None:
            steps = self._steps[operation] = await asyncio.to_thread(self._recorded, operation)
        now = self._clock.now()
        if steps and steps[-1].name == phase.name:
            if steps[-1].detail != phase.detail:
                steps[-1] = replace(steps[-1], detail=phase.detail)
                self._writes_read = -1
            return
        self._end_last(operation, "done")
        steps.append(StepRecord(phase.name, "running", self._clock.wall(), 0.0, phase.detail))
        self._entered[operation] = now
        await asyncio.to_thread(self._store.record_steps, operation, tuple(steps))

    def _recorded(self, operation: str) -> list[StepRecord]:
        """The steps that an earlier agent has recorded; the one it was in goes on from when it began."""
        steps = list(self._store.operation(operation).steps)
        if steps and steps[-1].state == "running":
            age = (self._clock.wall() - steps[-1].started_at).total_seconds()
            self._entered[operation] = self._clock.now() - max(0.0, age)
        return steps

    async def _end_steps(self, d: WantedDeployment) -> None:
        """A rollout that is over: its last step went through, or failed."""
        for revision in self._history.get(d.name, ()):
            if revision.operation in self._entered:
                await self.close(revision.operation, failed=revision.outcome is RevisionOutcome.FAILED)

    async def close(self, operation: str, *, failed: bool = False) -> None:
        """End the steps of an operation and record them."""
        steps = self._steps.get(operation)
        if steps is None:
            return
        self._end_last(operation, "failed" if failed else "done")
        await asyncio.to_thread(self._store.record_steps, operation, tuple(steps))
        del self._steps[operation]

    def _end_last(self, operation: str, state: Literal["done", "failed"]) -> None:
        steps = self._steps.get(operation)
        entered = self._entered.pop(operation, None)
        if steps and entered is not None:
            last = steps[-1]
            # What a step waited for is of interest while it waits, and when it waited in vain.
            detail = "" if state == "done" and last.name in WAITS else last.detail
            steps[-1] = replace(last, state=state, elapsed=round(self._clock.now() - entered, 3), detail=detail)


def _failure(d: WantedDeployment, history: tuple[Revision, ...]) -> Failure | None:
    """The failure that concerns people now: the newest revision's, or the live one's own crashes."""
    if rolling(d) or not history:
        return None
    newest = history[0]
    if newest.failure is not None and (d.live is None or newest.number > d.live.number):
        return newest.failure
    return _crash(d, history)


def _crash(d: WantedDeployment, history: tuple[Revision, ...]) -> Failure | None:
    """How the live revision's replicas ended last, while that is not long past."""
    if d.live is None or not d.live.crashes:
        return None
    number = d.live.number
    return next((r.failure for r in history if r.number == number), None)
