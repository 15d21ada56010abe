"""What a deployment looks like to people: one state, one sentence, the phase of its rollout. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from quarterdeck_agent.counts import (
    counts_wanted,
    given_up,
    is_staged,
    next_start,
    on_ailing,
    recent_crashes,
    rolling,
    warm_left,
)
from quarterdeck_agent.drivers.base import Life
from quarterdeck_agent.gpus.placement import device_name
from quarterdeck_agent.protocol import (
    DeploymentState,
    DeploymentStatus,
    Failure,
    Replica,
    ReplicaState,
)
from quarterdeck_agent.seen import Seen, SeenReplica
from quarterdeck_agent.wanted import WantedDeployment, WantedRevision


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store and the catalogue add to one deployment's status.

    `failure` is the one that concerns people now, which may be of a revision that never served; `crash` is how the
    live revision's replicas ended last, while that is not long past. `waits` says what keeps replicas from being
    started: a place on the GPUs, or memory that does not come free.
    """

    endpoint: str
    predict_path: str
    since: datetime
    by: str
    engine: str
    failure: Failure | None = None
    crash: Failure | None = None
    waits: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """Where a rollout stands: a step's name and a detail for people."""

    name: str
    detail: str = ""


def deployment_status(d: WantedDeployment, seen: Seen, facts: Facts, now: float, wall: datetime) -> DeploymentStatus:
    """One deployment at a glance. `now` is on the boot clock, `wall` the same moment in UTC."""
    serving = d.live or d.target
    mine = seen.of(d.name)
    ready = sum(1 for r in mine if r.ready and r.found.body == serving.body)
    state, summary = describe(d, seen, now, ready, facts)
    warm = warm_left(d, seen, now) if _warm_replicas(d, mine) else 0.0
    return DeploymentStatus(
        name=d.name,
        generation=d.generation,
        state=state,
        summary=summary,
        wanted_revision=d.target.number,
        live_revision=d.live.number if d.live else None,
        label=serving.spec.label,
        version=serving.spec.version,
        replicas_wanted=0 if serving.spec.stopped else serving.spec.replicas,
        replicas_ready=ready,
        endpoint=facts.endpoint,
        predict_path=facts.predict_path,
        since=facts.since,
        by=facts.by,
        operation=d.target.operation if rolling(d) else None,
        warm_revision=d.previous.number if d.previous and warm > 0 else None,
        # Rounded, so that a warm revision does not change the status on every look.
        warm_until=(wall + timedelta(seconds=warm)).replace(microsecond=0) if warm > 0 else None,
        replicas=tuple(replica_status(r, facts.engine, d, seen, now, wall) for r in mine),
        failure=facts.failure,
    )


def at_rest(d: WantedDeployment, status: DeploymentStatus) -> bool:
    """Whether the status stays as it is for as long as nothing is wanted or seen otherwise: no time runs in it."""
    settled = status.state in (DeploymentState.SERVING, DeploymentState.STOPPED)
    return settled and not rolling(d) and d.previous is None


def describe(d: WantedDeployment, seen: Seen, now: float, ready: int, facts: Facts) -> tuple[DeploymentState, str]:
    """The state and a sentence, the worst thing first."""
    if d.removing:
        return DeploymentState.REMOVING, "draining and stopping its replicas"
    if rolling(d):
        phase = rollout_phase(d, seen, now, facts.waits)
        text = f"{d.target.spec.label}: {phase.name}" + (f" ({phase.detail})" if phase.detail else "")
        return (DeploymentState.HOLDING if d.holding else DeploymentState.DEPLOYING), text
    if d.live is None:
        return DeploymentState.FAILED, _failed(d.target, facts.failure)
    if d.live.spec.stopped:
        return DeploymentState.STOPPED, "stopped"
    return _running(d, d.live, seen, now, ready, facts)


def _running(
    d: WantedDeployment, live: WantedRevision, seen: Seen, now: float, ready: int, facts: Facts
) -> tuple[DeploymentState, str]:
    wanted = live.spec.replicas
    if ill := _ailing(d, live, seen):
        waits = _without_reasons(facts.waits, ill, seen)
        moves = f"no other place: {waits}" if waits else "another replica takes over from it elsewhere"
        return DeploymentState.DEGRADED, f"{ready} of {wanted} replicas ready, on {ill}; {moves}"
    if ready >= wanted and not d.holding:
        refused = f"; {_failed(d.target, facts.failure)}" if facts.failure and facts.failure != facts.crash else ""
        return DeploymentState.SERVING, f"serving {live.spec.label}{refused}"
    crashes = len(recent_crashes(live, seen.boot_id, now))
    why = f": {facts.crash.message}" if facts.crash and crashes else ""
    wait = next_start(live, seen.boot_id, now) - now
    again = f", next start in {wait:.0f} s" if wait > 0 else ""
    waiting = next((r.detail for r in seen.of(d.name) if r.found.body == live.body and r.running and r.detail), "")
    unready = f"; {waiting}" if waiting else ""
    if facts.waits and not wait > 0:
        unready += f"; waits for its GPUs: {facts.waits}"
    text = f"{ready} of {wanted} replicas ready, {crashes} crashes in 10 minutes{why}{again}{unready}"
    if given_up(live, seen.boot_id, now) and not ready:
        return DeploymentState.FAILED, text
    if d.holding:
        waits = f", but {facts.waits}" if facts.waits else ""
        return DeploymentState.HOLDING, f"{live.spec.label} is coming back{waits}"
    return DeploymentState.DEGRADED, text


def _ailing(d: WantedDeployment, live: WantedRevision, seen: Seen) -> str:
    """The first ailing GPU that a live replica is on, in words; empty when there is none."""
    mine = [r for r in seen.of(d.name) if r.running and r.found.body == live.body and on_ailing(r, seen)]
    held = {uuid for replica in mine for uuid in replica.found.gpus} & seen.ailing
    by_uuid = {gpu.uuid: gpu for gpu in seen.gpus}
    gpu = next((gpu for gpu in seen.gpus if gpu.uuid in held), None)
    if gpu is None:
        return f"GPU {min(held)}, which NVML does not show any more" if held else ""
    why = f" ({gpu.why})" if gpu.why else ""
    return f"{device_name(gpu, by_uuid.get(gpu.parent or ''))}, which is {gpu.health.value}{why}"


def _without_reasons(waits: str, ill: str, seen: Seen) -> str:
    """What is waited for, without what is said of a GPU already."""
    for gpu in seen.gpus:
        if gpu.why and gpu.why in ill:
            waits = waits.replace(f": {gpu.why}", "")
    return waits


def _failed(target: WantedRevision, failure: Failure | None) -> str:
    if failure is None:
        return f"{target.spec.label} failed"
    return f"the last deploy failed: {failure.message}"


def _warm_replicas(d: WantedDeployment, mine: tuple[SeenReplica, ...]) -> bool:
    return d.previous is not None and any(r.running and r.found.body == d.previous.body for r in mine)


def rollout_phase(d: WantedDeployment, seen: Seen, now: float, waits: str = "") -> Phase:
    """The step a rollout is in, read off the facts. `waits` is what keeps its replicas from being started."""
    target = d.target
    mine = [r for r in seen.of(d.name) if r.found.body == target.body and r.running]
    if not target.passed and not d.holding:
        mine = [r for r in mine if not on_ailing(r, seen)]  # they do not count for the switch
    old = [r for r in seen.of(d.name) if r.found.body != target.body]
    ready = sum(1 for r in mine if r.ready)
    if target.spec.stopped:
        return Phase("switch")
    if not is_staged(target, seen):
        return Phase("stage")
    if d.holding and old and not mine:
        return Phase("drain", f"{len(old)} old replica(s) to stop")
    if d.target.handover == "hold" and d.live is not None and not d.holding and not target.passed:
        return Phase("hold", waits)
    count = counts_wanted(d, seen, now).get(target.body)
    if count is not None and len(mine) < target.spec.replicas:
        if waits and d.holding:
            return Phase("memory", waits)
        return Phase("start", f"{len(mine)} of {target.spec.replicas}" + (f"; {waits}" if waits else ""))
    if ready < target.spec.replicas:
        waiting = next((r.detail for r in mine if not r.ready and r.detail), "")
        return Phase("ready", f"{ready} of {target.spec.replicas}" + (f"; {waiting}" if waiting else ""))
    settled = all(r.ready_since is not None and now - r.ready_since >= target.spec.dwell for r in mine)
    if not settled and not target.passed:
        return Phase("dwell", f"{target.spec.dwell:g} s")
    return Phase("golden" if target.spec.golden and not target.passed else "switch")


def replica_status(
    replica: SeenReplica, engine: str, d: WantedDeployment, seen: Seen, now: float, wall: datetime
) -> Replica:
    """One replica for people."""
    found = replica.found

    def moment(seconds: float | None) -> datetime | None:
        return None if seconds is None else (wall - timedelta(seconds=now - seconds)).replace(microsecond=0)

    wanted = found.body in counts_wanted(d, seen, now)
    return Replica(
        id=found.id,
        deployment=found.deployment,
        revision=found.revision,
        state=replica_state(replica, wanted),
        engine=engine,
        handle=found.handle,
        reason=found.reason or replica.gpu_lost or ("" if replica.ready else replica.detail),
        address=f"{found.address[0]}:{found.address[1]}" if found.address else None,
        started_at=moment(found.started),
        ready_since=moment(replica.ready_since),
        restarts=next((len(r.crashes) for r in (d.target, d.live, d.previous) if r and r.body == found.body), 0),
        exit_code=found.exit_code,
        gpus=found.gpus,
    )


def replica_state(replica: SeenReplica, wanted: bool) -> ReplicaState:
    """The state of a replica from what is seen of it and whether it is wanted."""
    if replica.found.life is Life.EXITED:
        return ReplicaState.EXITED
    if not wanted:
        return ReplicaState.STOPPING
    if replica.ready:
        return ReplicaState.READY
    return ReplicaState.UNREADY if replica.was_ready else ReplicaState.STARTING
