"""A pretend host for the planner: takes the steps it asks for and turns them into facts, without clocks or I/O.

With `gpus` it has GPUs: replicas hold memory there, which comes free a while after they are gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from zlib import crc32

from quarterdeck_agent.drivers.base import Found, GatewaySeen, Life, Resources
from quarterdeck_agent.gpus.placement import Place
from quarterdeck_agent.plan import plan
from quarterdeck_agent.protocol import FailureReason, Gpu, GpuProcess, GpuUse, RevisionOutcome, Spec
from quarterdeck_agent.seen import Seen, SeenReplica
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
from quarterdeck_agent.traffic import route
from quarterdeck_agent.wanted import Instant, WantedDeployment, WantedRevision

BOOT = "boot"


def revision(number: int, body: str = "", **changes: object) -> WantedRevision:
    """A revision of a two-second dwell with golden requests; `body` defaults to one of its own."""
    spec = Spec(version=f"v-{body or number}", label=f"m:{body or number}")
    known = {"replicas", "warm", "dwell", "golden", "stopped", "deadline", "limits"}
    spec = replace(spec, **{key: value for key, value in changes.items() if key in known})  # type: ignore[arg-type]
    rest = {key: value for key, value in changes.items() if key not in known}
    return WantedRevision(
        number=number,
        spec=spec,
        body=body or f"body-{number}",
        operation=f"op-{number}",
        created=Instant(BOOT, 0.0),
        **rest,  # type: ignore[arg-type]
    )


def found(name: str, body: str, revision: int = 1, **changes: object) -> Found:
    """A running replica with an address of its own."""
    port = 20000 + crc32(name.encode()) % 40000
    base = Found(
        id=name,
        deployment="m",
        revision=revision,
        body=body,
        version="v",
        handle=f"{name}:1",
        life=Life.RUNNING,
        address=("127.0.0.1", port),
        started=0.0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def seen_replica(name: str, body: str, revision: int = 1, *, ready: bool = True, **changes: object) -> SeenReplica:
    """A replica that has been ready since the beginning and takes requests."""
    base = SeenReplica(
        found(name, body, revision),
        ready=ready,
        ready_since=0.0 if ready else None,
        was_ready=ready,
        routed=ready,
        requests=0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@dataclass
class World:
    """A host with one deployment, `m`. `breaks` are bodies that crash at once, `wrong` those whose answers differ.

    `gpus` are its GPUs by size, `strangers` and `leaks` what others and nobody hold on each, `holds` what a replica of
    each body holds on each of its GPUs, which comes free `release` seconds after it has gone.
    """

    d: WantedDeployment
    replicas: dict[str, SeenReplica] = field(default_factory=dict)
    asks: Resources = field(default_factory=Resources)
    now: float = 100.0
    breaks: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()
    never_ready: frozenset[str] = frozenset()
    staged: set[str] = field(default_factory=set)
    taken: list[Step] = field(default_factory=list)
    served: list[int | None] = field(default_factory=list)
    gone: bool = False
    live_asks: Resources | None = None
    gpus: dict[str, int] = field(default_factory=dict)
    strangers: dict[str, int] = field(default_factory=dict)
    leaks: dict[str, int] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    release: float = 0.0
    trouble: str = ""
    going: list[tuple[float, str, int]] = field(default_factory=list)
    left: dict[str, tuple[Place, ...]] = field(default_factory=dict)

    def seen(self) -> Seen:
        uses = tuple(self._use(uuid) for uuid in self.gpus)
        return Seen(
            boot_id=BOOT,
            replicas=tuple(self.replicas.values()),
            gateway=GatewaySeen("x"),
            staged=frozenset(self.staged),
            gpus=tuple(self._gpu(index, use) for index, use in enumerate(uses)),
            gpu_uses=uses,
            gpu_trouble=self.trouble,
            left=self.left,
        )

    def _use(self, uuid: str) -> GpuUse:
        processes = [
            GpuProcess(1, self.holds.get(r.found.body, 0), replica=r.found.id, deployment=self.d.name)
            for r in self.replicas.values()
            if r.found.life is Life.RUNNING and uuid in r.found.gpus
        ]
        if uuid in self.strangers:
            processes.append(GpuProcess(4711, self.strangers[uuid], user="alice", command="train"))
        return GpuUse(uuid, tuple(processes), self.leaks.get(uuid, 0))

    def _gpu(self, index: int, use: GpuUse) -> Gpu:
        going = sum(size for _, uuid, size in self.going if uuid == use.uuid)
        used = sum(p.memory or 0 for p in use.processes) + (use.unexplained or 0) + going
        total = self.gpus[use.uuid]
        return Gpu(index, use.uuid, "x", total, used, memory_free=total - used, memory_reserved=0)

    def overfull(self) -> list[str]:
        """GPUs on which more is held than there is: what must never be."""
        return [gpu.uuid for gpu in self.seen().gpus if (gpu.memory_free or 0) < 0]

    def _let_go(self, one: Found) -> None:
        for uuid in one.gpus if one.life is Life.RUNNING else ():
            self.going.append((self.now + self.release, uuid, self.holds.get(one.body, 0)))
        if one.gpus:
            self.left[one.body] = (one.gpus, *self.left.get(one.body, ()))

    def steps(self) -> tuple[Step, ...]:
        return plan(self.d, self.asks_of(self.d.target), self.seen(), self.now, self.live_asks)

    def asks_of(self, revision: WantedRevision) -> Resources:
        """What a revision's replicas claim: `live_asks` the live one's where that is given."""
        lives = self.d.live is not None and revision.body == self.d.live.body
        return self.live_asks or self.asks if lives else self.asks

    def run(self, passes: int = 200, tick: float = 0.5, rest: int = 10) -> World:
        """Plan and perform until nothing is asked for over `rest` passes, or the passes are used up."""
        quiet = 0
        for _ in range(passes):
            if self.gone:
                break
            steps = self.steps()
            for step in steps:
                self.perform(step)
            self.turn(tick)
            quiet = 0 if steps else quiet + 1
            if quiet > rest:
                break
        return self

    def turn(self, tick: float) -> None:
        """Time passes: replicas become ready or end, the gateway takes its routes."""
        self.now += tick
        self.going = [each for each in self.going if each[0] > self.now]
        for name, replica in list(self.replicas.items()):
            if replica.found.life is not Life.RUNNING:
                continue
            if replica.found.body in self.breaks:
                ended = replace(replica.found, life=Life.EXITED, exit_code=1)
                self.replicas[name] = replace(replica, found=ended, ready=False, ready_since=None)
            elif not replica.ready and replica.found.body not in self.never_ready:
                self.replicas[name] = replace(replica, ready=True, ready_since=self.now, was_ready=True)
        if self.gone or self.d.removing:
            reachable: set[tuple[str, int]] = set()
        else:
            current = route(self.d, self.seen(), self.now)
            main = [t for t in current.clusters if t.revision == current.revision]
            reachable = {e for t in main for e in t.endpoints}
            answering = bool(reachable) or current.holding
            self.served.append(current.revision if answering and not current.stopped else None)
        for name, replica in list(self.replicas.items()):
            if replica.found.address in reachable:
                self.replicas[name] = replace(replica, routed=True, unrouted_since=None, requests=0)
            elif replica.unrouted_since is None:
                self.replicas[name] = replace(replica, unrouted_since=self.now, requests=0)

    # --- what the performer and the store do ------------------------------------------------------------------

    def perform(self, step: Step) -> None:
        self.taken.append(step)
        match step:
            case Stage(revision):
                self.staged.add(revision.spec.version)
                self._update(revision.body, image="")
            case Start(revision, replica, gpus):
                new = found(replica, revision.body, revision.number, started=self.now, gpus=gpus)
                asks = self.asks_of(revision)
                new = replace(new, deployment=self.d.name, vram=asks.vram, exclusive=asks.whole_gpus)
                there = self.replicas.get(replica)
                if there is None or there.found.life is Life.CREATED:
                    self.replicas[replica] = SeenReplica(new, requests=0)
            case Check(revision, _):
                if revision.body in self.wrong:
                    self._fail(revision, FailureReason.GOLDEN_MISMATCH)
                else:
                    self._update(revision.body, passed=True)
            case Hold(_):
                self.d = replace(self.d, holding=True, holding_since=Instant(BOOT, self.now))
            case Release():
                self.d = replace(self.d, holding=False, holding_since=None)
            case Promote(revision):
                self._promote(revision)
            case Fail():
                self._fail(step.revision, step.reason)
            case Bury(revision, replica, reason, _):
                crashes = (*revision.crashes, Instant(BOOT, self.now))
                self._update(revision.body, crashes=crashes, reason=reason)
                self._let_go(replica)
                del self.replicas[replica.id]
            case Recover(revision):
                self._update(revision.body, crashes=())
            case Stop(replica, _, _):
                self._let_go(replica)
                del self.replicas[replica.id]
            case Cool():
                self.d = replace(self.d, previous=None, replaced_at=None)
            case Forget():
                self.gone = True

    def _update(self, body: str, **changes: object) -> None:
        def updated(r: WantedRevision | None) -> WantedRevision | None:
            return replace(r, **changes) if r is not None and r.body == body else r  # type: ignore[arg-type]

        target = updated(self.d.target)
        assert target is not None
        self.d = replace(self.d, target=target, live=updated(self.d.live), previous=updated(self.d.previous))

    def _promote(self, new: WantedRevision) -> None:
        serving = replace(self.d.target, outcome=RevisionOutcome.SERVING, passed=True)
        old = self.d.live
        keep = old is not None and old.body != new.body and not old.spec.stopped and not new.spec.stopped
        previous, at = (old, Instant(BOOT, self.now)) if keep else (self.d.previous, self.d.replaced_at)
        if previous is not None and (previous.body == new.body or new.spec.stopped):
            previous, at = None, None
        self.d = replace(self.d, target=serving, live=serving, previous=previous, replaced_at=at)

    def _fail(self, failed: WantedRevision, reason: FailureReason) -> None:
        target = self.d.live or replace(failed, outcome=RevisionOutcome.FAILED, reason=reason)
        self.d = replace(self.d, target=target)

    # --- questions -------------------------------------------------------------------------------------------

    def running(self, body: str) -> int:
        return sum(1 for r in self.replicas.values() if r.found.body == body and r.running)

    def names(self) -> list[str]:
        return [type(step).__name__ for step in self.taken]


def serving(number: int = 1, body: str = "", **changes: object) -> World:
    """A host on which one revision serves."""
    live = replace(revision(number, body, **changes), outcome=RevisionOutcome.SERVING, passed=True, image="")
    world = World(WantedDeployment("m", 1, target=live, live=live))
    world.staged.add(live.spec.version)
    for slot in range(live.spec.replicas):
        name = f"m-{number}-{slot}"
        world.replicas[name] = seen_replica(name, live.body, number)
    return world


def deploying(world: World, target: WantedRevision) -> World:
    """The same host after a new revision was asked for."""
    world.d = replace(world.d, target=target, generation=world.d.generation + 1)
    return world
