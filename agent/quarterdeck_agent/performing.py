"""How each step is performed: the one place that turns planned steps into calls of engine, store and probe.

Every step may be performed twice without harm. What goes wrong in a way that concerns the revision is recorded as
its failure here; what concerns the host (an engine that does not answer) is raised and tried again by the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from quarterdeck_agent.bundle import Golden, ModelConfig
from quarterdeck_agent.catalogue import Launch
from quarterdeck_agent.clock import Clock
from quarterdeck_agent.drivers.base import Engine, Found, Progress, ReplicaSpec, Resources
from quarterdeck_agent.errors import AgentError, EngineUnresponsive, StartRefused
from quarterdeck_agent.failpoints import failpoint
from quarterdeck_agent.places import place_lost
from quarterdeck_agent.protocol import Failure, FailureReason, Gpu
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.staging import staged_reader, with_golden
from quarterdeck_agent.steps import (
    Bury,
    Check,
    Cool,
    Fail,
    Forget,
    Hold,
    Promote,
    Recover,
    Release,
    Stage,
    Start,
    Step,
    Stop,
)
from quarterdeck_agent.store import Store
from quarterdeck_agent.wanted import Instant, WantedDeployment, WantedRevision

log = logging.getLogger(__name__)

LAST_LINES = 40
GOLDEN_LIMIT = 60.0
FACTS_DEADLINE = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that starting and checking a revision's replicas takes, worked out from its version and runtime."""

    model: ModelConfig
    launch: Launch
    body: str
    env: dict[str, str]


class Recipes(Protocol):
    """Finds the recipe of a revision."""

    def __call__(self, revision: WantedRevision) -> Recipe: ...


class Stager(Protocol):
    """Puts a version's verified files into a folder."""

    async def __call__(self, version: str) -> Path: ...


class Verdict(Protocol):
    """What a probe says: whether all is well, and if not, why."""

    @property
    def ok(self) -> bool: ...

    @property
    def detail(self) -> str: ...


class AskGolden(Protocol):
    """Sends one golden request to (ip, port) and compares the answer."""

    async def __call__(
        self, address: tuple[str, int], golden: Golden, default_path: str, deadline: float
    ) -> Verdict: ...


class SeenEditor(Protocol):
    """Takes note of what a step has just changed, before the next look at the engine would tell."""

    def started(self, found: Found) -> None: ...

    def gone(self, found: Found) -> None: ...

    def staged(self, version: str) -> None: ...

    def gpus(self) -> tuple[Gpu, ...]: ...

    def seen(self) -> Seen: ...


@dataclass(frozen=True, slots=True)
class Performer:
    """Performs steps with the parts it was given. `before_removal` saves what an ended replica still has to say."""

    store: Store
    engine: Engine
    stage: Stager
    recipes: Recipes
    seen: SeenEditor
    clock: Clock
    logs_folder: Path
    last_lines: Callable[[str, int, str, int], Awaitable[tuple[str, ...]]]
    report: Callable[[str, Progress], None]
    ask_golden: AskGolden
    ask_facts: Callable[[tuple[str, int], str, float], Awaitable[dict[str, str]]]
    before_removal: Callable[[Found], Awaitable[None]]

    async def perform(self, d: WantedDeployment, step: Step) -> None:
        """Perform one step. Raises `AgentError` when it could not be done now and should be tried again."""
        match step:
            case Stage(revision):
                await self._stage(d, revision)
            case Start():
                await self._start(d, step)
            case Check(revision, replica):
                await self._check(d, revision, replica)
            case Hold(_):
                await self._write(self.store.set_holding, d.name, self._instant())
            case Release():
                await self._write(self.store.set_holding, d.name, None)
            case Promote(revision):
                await self._write(self.store.promote, d.name, revision.number, self._instant())
                await self._note_facts(revision)
            case Fail():
                await self._fail(d, step.revision, step.step, step.reason, step.message, step.replica)
            case Bury():
                await self._bury(d, step)
            case Recover(revision):
                await self._write(self.store.clear_crashes, d.name, revision.body)
            case Stop(replica, grace):
                await self.engine.stop(replica, grace)
                failpoint("stop.ended")
                await self._remove(replica)
            case Cool():
                await self._write(self.store.forget_previous, d.name)
            case Forget():
                await self._write(self.store.finish_removal, d.name)

    async def _note_facts(self, revision: WantedRevision) -> None:
        """Ask one replica of what serves now on what it runs, where its runtime can tell."""
        try:
            path = (await asyncio.to_thread(self.recipes, revision)).launch.facts_path
        except AgentError:  # the runtime's file may be gone, and what serves goes on serving
            return
        replica = next((r.found for r in self.seen.seen().replicas if r.ready and r.found.body == revision.body), None)
        if path is None or replica is None or replica.address is None:
            return
        if facts := await self.ask_facts(replica.address, path, FACTS_DEADLINE):
            await self._write(self.store.set_facts, revision.spec.version, facts)

    # --- the longer ones ---------------------------------------------------------------------------------------

    async def _stage(self, d: WantedDeployment, revision: WantedRevision) -> None:
        recipe = await asyncio.to_thread(self.recipes, revision)
        try:
            if revision.image is None:
                image = recipe.launch.image
                resolved = await self._resolve(d.name, image) if image else ""
                await self._write(self.store.set_image, d.name, revision.number, resolved)
            await self.stage(revision.spec.version)
            self.seen.staged(revision.spec.version)
        except EngineUnresponsive:
            raise
        except AgentError as error:
            await self._fail_or_wait(d, revision, "stage", FailureReason.STAGING, error)

    async def _resolve(self, deployment: str, image: str) -> str:
        return await self.engine.resolve(image, lambda progress: self.report(deployment, progress))

    async def _start(self, d: WantedDeployment, step: Start) -> None:
        revision, replica = step.revision, step.replica
        recipe = await asyncio.to_thread(self.recipes, revision)
        folder = self.logs_folder / d.name / str(revision.number) / replica
        try:
            bundle = await self.stage(revision.spec.version)
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
            spec = replica_spec(d.name, revision, replica, step.gpus, recipe, bundle, folder)
            if (lost := self._place_lost(d, step, recipe.model.resources)) is None:
                self.seen.started(await self.engine.start(spec))
        except StartRefused as error:
            await self._fail_or_wait(d, revision, "start", FailureReason.START_REFUSED, error)
        except EngineUnresponsive:
            raise
        except (AgentError, OSError) as error:
            await self._fail_or_wait(d, revision, "start", FailureReason.STAGING, error)
        else:
            if lost is not None:  # no fault of the revision: another plan finds another place, or waits
                raise AgentError(f"{replica} was not started where it was to go: {lost}")

    def _place_lost(self, d: WantedDeployment, step: Start, asks: Resources) -> str | None:
        """Why the place is not free any more: somebody may have come since the plan was made.

        What is younger than NVML's last look (a second) cannot be known: then whoever allocates last gets no memory.
        """
        return place_lost(d, asks, step.revision, step, self.seen.seen()) if asks.gpus else None

    async def _check(self, d: WantedDeployment, revision: WantedRevision, replica: Found) -> None:
        recipe = await asyncio.to_thread(self.recipes, revision)
        bundle = await self.stage(revision.spec.version)
        model = await asyncio.to_thread(with_golden, recipe.model, staged_reader(bundle))
        assert replica.address is not None
        for number, request in enumerate(model.golden, start=1):
            path = recipe.launch.predict_path.replace("{name}", recipe.model.name)
            result = await self.ask_golden(replica.address, request, path, request.timeout or GOLDEN_LIMIT)
            if not result.ok:
                text = f"{result.detail} (request {number} of {len(model.golden)})"
                await self._fail(d, revision, "golden", FailureReason.GOLDEN_MISMATCH, text, replica)
                return
        await self._write(self.store.set_passed, d.name, revision.body)

    async def _bury(self, d: WantedDeployment, step: Bury) -> None:
        await self.engine.stop(step.replica, 0.0)
        await self.before_removal(step.replica)
        failure = await self._failure(d, step.revision, "run", step.reason, step.message, step.replica)
        await self._write(self.store.record_crash, d.name, step.revision.body, self._instant(), failure)
        log.warning("replica %s of %s ended: %s", step.replica.id, d.name, step.message)
        await self._remove(step.replica)

    async def _remove(self, replica: Found) -> None:
        await self.before_removal(replica)
        await self.engine.remove(replica)
        self.seen.gone(replica)

    # --- failure -----------------------------------------------------------------------------------------------

    async def _fail_or_wait(
        self, d: WantedDeployment, revision: WantedRevision, step: str, reason: FailureReason, error: Exception
    ) -> None:
        """A rollout's target fails for good; a live revision counts it as a crash and is tried again later."""
        message = _in_words(error)
        if d.live is None or d.live.number != revision.number:
            await self._fail(d, revision, step, reason, message, None)
            return
        failure = await self._failure(d, revision, step, reason, message, None)
        await self._write(self.store.record_crash, d.name, revision.body, self._instant(), failure)

    async def _fail(
        self,
        d: WantedDeployment,
        revision: WantedRevision,
        step: str,
        reason: FailureReason,
        message: str,
        replica: Found | None,
    ) -> None:
        failure = await self._failure(d, revision, step, reason, message, replica)
        failure = await asyncio.to_thread(self._completed, d.name, revision, failure)
        log.warning("revision %d of %s failed at %s: %s", revision.number, d.name, step, message)
        await self._write(self.store.fail, d.name, revision.number, failure)

    def _completed(self, deployment: str, revision: WantedRevision, failure: Failure) -> Failure:
        """The record with the change that was asked for, and with what the last crash told when there were any."""
        changes = self.store.operation(revision.operation).changes
        crash = self.store.revision(deployment, revision.number).failure
        if crash is None or failure.last_lines or failure.exit_code is not None:
            return replace(failure, changes=changes)
        message = f"{failure.message}; the last time: {crash.message}"
        return replace(crash, at=failure.at, step=failure.step, message=message, changes=changes)

    async def _failure(
        self,
        d: WantedDeployment,
        revision: WantedRevision,
        step: str,
        reason: FailureReason,
        message: str,
        replica: Found | None,
    ) -> Failure:
        lines: tuple[str, ...] = ()
        if replica is not None:
            lines = await self.last_lines(d.name, replica.revision, replica.id, LAST_LINES)
        return Failure(
            at=self.clock.wall(),
            step=step,
            reason=reason,
            message=message,
            exit_code=replica.exit_code if replica else None,
            signal=replica.signal if replica else None,
            last_lines=lines,
            gpus=self.seen.gpus(),
        )

    # --- small ones --------------------------------------------------------------------------------------------

    def _instant(self) -> Instant:
        return Instant(self.clock.boot_id, self.clock.now())

    async def _write(self, call: Callable[..., object], *args: object) -> None:
        await asyncio.to_thread(call, *args)


def replica_spec(
    deployment: str,
    revision: WantedRevision,
    replica: str,
    gpus: tuple[str, ...],
    recipe: Recipe,
    bundle: Path,
    log_folder: Path,
) -> ReplicaSpec:
    """What the engine is asked to start."""
    return ReplicaSpec(
        id=replica,
        deployment=deployment,
        revision=revision.number,
        body=revision.body,
        version=revision.spec.version,
        bundle=bundle,
        command=recipe.launch.command,
        log_folder=log_folder,
        env=recipe.env,
        image=revision.image or None,
        port=recipe.launch.port,
        resources=recipe.model.resources,
        gpus=gpus,
        model=recipe.model.name,
        writable_root=recipe.model.writable_root,
        user=recipe.model.user,
    )


def _in_words(error: Exception) -> str:
    """What happened and what to do, as sentences."""
    if not isinstance(error, AgentError):
        return str(error)
    return f"{error.detail.rstrip('.')}. {error.hint}" if error.hint else error.detail
