"""How many replicas of a deployment there should be now, which of those that run are too many, and when a crashed one
may start again. Pure: it reads off the facts, and decides neither steps nor places.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from quarterdeck_agent.drivers.base import Life
from quarterdeck_agent.protocol import RevisionOutcome
from quarterdeck_agent.seen import Seen, SeenReplica
from quarterdeck_agent.wanted import Instant, WantedDeployment, WantedRevision

CRASH_WINDOW = 600.0
"""Seconds over which crashes are counted, and after which a healthy revision's crashes are forgotten."""

CRASHES_TO_FAIL = 5
"""Crashes within the window after which a live revision counts as failed. It is still tried again every minute."""

LONGEST_BACKOFF = 60.0
SHORT_MEMORY = 0.08
"""Below this share of free memory no revision is kept warm."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many replicas of a body there should be, and the revision under whose name new ones start."""

    revision: WantedRevision
    replicas: int
    start: bool = True


def rolling(d: WantedDeployment) -> bool:
    """Whether a rollout is on its way: the target is not live and has not failed."""
    live = d.live.number if d.live else None
    return d.target.number != live and d.target.outcome is RevisionOutcome.PENDING and not d.removing


def counts_wanted(d: WantedDeployment, seen: Seen, now: float) -> dict[str, Count]:
    """By body, how many replicas there should be right now."""
    counts: dict[str, Count] = {}
    if d.removing:
        return counts
    live_serves = d.live is not None and not d.live.spec.stopped
    if rolling(d) and not d.target.spec.stopped and not waits_for_hold(d):
        counts[d.target.body] = Count(d.target, d.target.spec.replicas)
    if d.live is not None and live_serves and not (d.holding and rolling(d)):
        more = counts.get(d.live.body)
        replicas = max(d.live.spec.replicas, more.replicas if more else 0)
        counts[d.live.body] = Count(d.live, replicas)
    if d.previous is not None and d.previous.body not in counts and stays_warm(d, seen, now):
        counts[d.previous.body] = Count(d.previous, d.previous.spec.replicas, start=False)
    return counts


def waits_for_hold(d: WantedDeployment) -> bool:
    """Whether the target may not start yet because a hold handover has not begun."""
    return is_hold(d) and not d.holding


def is_hold(d: WantedDeployment) -> bool:
    """Whether the target may only start after what serves now is gone."""
    return (
        d.target.handover == "hold" and d.live is not None and not d.live.spec.stopped and d.live.body != d.target.body
    )


def stays_warm(d: WantedDeployment, seen: Seen, now: float) -> bool:
    """Whether the previous revision's replicas are still kept: warm, or with requests to finish."""
    if d.previous is None or d.replaced_at is None or d.live is None:
        return False
    age = d.replaced_at.age(seen.boot_id, now)
    busy = any(r.requests for r in seen.of(d.name) if r.found.body == d.previous.body and r.running)
    if busy and age < d.live.spec.limits.drain:
        return True
    return warm_left(d, seen, now) > 0


def warm_left(d: WantedDeployment, seen: Seen, now: float) -> float:
    """Seconds for which the previous revision is kept warm, 0 when it is not."""
    if d.previous is None or d.replaced_at is None or d.live is None or d.live.spec.stopped or d.removing:
        return 0.0
    if d.holding:
        return 0.0  # a hold is there because memory is short
    if memory_is_short(seen):
        return 0.0
    return max(0.0, d.live.spec.warm - d.replaced_at.age(seen.boot_id, now))


def memory_is_short(seen: Seen) -> bool:
    """Whether the host has too little memory left to keep anything warm."""
    if seen.memory_total is None or seen.memory_available is None:
        return False
    return seen.memory_available < seen.memory_total * SHORT_MEMORY


def surplus(counts: dict[str, Count], mine: tuple[SeenReplica, ...], seen: Seen) -> tuple[SeenReplica, ...]:
    """Running replicas beyond what is wanted, those least ready and youngest first.

    Those on ailing GPUs do not count, and go one by one as others are ready in their place.
    """
    result: list[SeenReplica] = []
    by_body: dict[str, list[SeenReplica]] = {}
    for replica in mine:
        if replica.running:
            by_body.setdefault(replica.found.body, []).append(replica)
    for body, replicas in by_body.items():
        keep = counts[body].replicas if body in counts else 0
        replicas.sort(key=lambda r: (r.ready, -began(r), r.found.id))
        ailing = [r for r in replicas if on_ailing(r, seen)]
        well = [r for r in replicas if not on_ailing(r, seen)]
        stay = max(0, keep - sum(1 for r in well if r.ready))
        result.extend(ailing[: max(0, len(ailing) - stay)])
        result.extend(well[: max(0, len(well) - keep)])
    return tuple(result)


def began(replica: SeenReplica) -> float:
    """When a replica was started, on the boot clock; 0 when it was not, or nobody knows."""
    return replica.found.started if replica.found.started is not None else 0.0


def on_ailing(replica: SeenReplica, seen: Seen) -> bool:
    """Whether a replica is on a GPU that it is to leave."""
    return not seen.ailing.isdisjoint(replica.found.gpus)


def may_start(replica: SeenReplica, count: Count) -> bool:
    """Whether a replica that was made and never started (the agent ended in between) is one that shall start now."""
    made = replica.found
    return made.life is Life.CREATED and count.start and made.revision == count.revision.number


def is_staged(revision: WantedRevision, seen: Seen) -> bool:
    """Whether a revision's files and image are on the host."""
    return revision.spec.version in seen.staged and revision.image is not None


def next_start(revision: WantedRevision, boot_id: str, now: float) -> float:
    """When a replica may start again: 1, 2, 4 … 60 s after the last crash, spread by up to a fifth."""
    crashes = recent_crashes(revision, boot_id, now)
    if not crashes:
        return 0.0
    delay = min(LONGEST_BACKOFF, 2.0 ** (len(crashes) - 1))
    spread = sha256(f"{revision.body}{len(crashes)}".encode()).digest()[0] / 255 * 0.2
    return crashes[-1].seconds + delay * (1 - spread)


def recent_crashes(revision: WantedRevision, boot_id: str, now: float) -> tuple[Instant, ...]:
    """The crashes within the window; of a revision on its way only its own, not those of an earlier try of its body."""
    window = CRASH_WINDOW
    if revision.outcome is RevisionOutcome.PENDING:
        window = min(window, revision.created.age(boot_id, now))
    return tuple(c for c in revision.crashes if c.age(boot_id, now) <= window)


def given_up(revision: WantedRevision, boot_id: str, now: float) -> bool:
    """Whether a live revision crashed so often that it counts as failed."""
    return len(recent_crashes(revision, boot_id, now)) >= CRASHES_TO_FAIL
