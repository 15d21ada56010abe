"""Which GPUs a replica gets: devices, what is claimed and really held, what is asked → places, or why not. Pure.

Nothing here knows of revisions or rollouts. What other modules need of devices and of their words, they get here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.gpus.devices import (
    KEPT,
    STARTING,
    Ask,
    Claim,
    Device,
    Place,
    Sight,
    at_best,
    claims_of,
    device_name,
    devices_in,
    matches,
    really_free,
)
from quarterdeck_agent.gpus.room import IN_THE_WAY, gib, needs, obstacle_on, slots_on, who, whose
from quarterdeck_agent.protocol import Gpu, GpuHealth, GpuProcess, GpuUse

__all__ = [
    "IN_THE_WAY",
    "KEPT",
    "STARTING",
    "Ask",
    "Claim",
    "Place",
    "Placing",
    "Sight",
    "claims_of",
    "device_name",
    "gib",
    "needs",
    "never_fits",
    "obstacle",
    "place",
    "place_names",
    "really_free",
    "who",
    "whose",
    "without",
]

SHOWN_DEVICES = 3


@dataclass(frozen=True, slots=True)
class Placing:
    """The places found, at most as many as were asked for; `refusal` says in one line why there are not more.

    `held` tells that memory which is in use stands in the way: it may come free.
    """

    places: tuple[Place, ...]
    refusal: str = ""
    held: bool = False


def place(ask: Ask, count: int, sight: Sight, claims: Sequence[Claim], prefer: Sequence[Place] = ()) -> Placing:
    """Places for `count` replicas, as many as there are. `prefer` are places they had before, taken where still good.

    Fits tightly, so that large holes stay; spreads replicas of one body; keeps the devices of one replica together on
    NVLink. The same input gives the same places.
    """
    if not ask.resources.gpus or not count:
        return Placing(((),) * count)
    if sight.trouble:
        return Placing((), f"{needs(ask.resources)}; {sight.trouble}")
    devices = [device for device in devices_in(sight, claims) if matches(device, ask.resources)]
    links = _links(sight)
    wanted = _feasible({d.gpu.uuid: slots_on(d, ask) for d in devices}, ask.resources.gpus, count)
    taken = list(claims)
    places: list[Place] = []
    while len(places) < wanted:
        found = _next_place(ask, devices, wanted - len(places), links, prefer)
        places.append(found)
        taken.extend(ask.claims(f"new {len(places)}", found))
        devices = [device for device in devices_in(sight, taken) if matches(device, ask.resources)]
    if len(places) == count:
        return Placing(tuple(places))
    text, held = _refusal(ask, devices, sight)
    return Placing(tuple(places), text, held)


def obstacle(ask: Ask, uuids: Place, sight: Sight, claims: Sequence[Claim]) -> str | None:
    """Why a replica cannot be put on exactly these devices now; `None` when it can."""
    if not uuids:
        return None
    if sight.trouble:
        return sight.trouble
    devices = {device.gpu.uuid: device for device in devices_in(sight, claims)}
    for uuid in uuids:
        device = devices.get(uuid)
        if device is None:
            return f"GPU {uuid} is not there any more"
        if (found := obstacle_on(device, ask)) is not None:
            return found.text
    return None


def _feasible(slots: dict[str, int], each: int, count: int) -> int:
    """For how many replicas, of `count`, there is room when each takes `each` different devices."""
    while count and sum(min(n, count) for n in slots.values()) < count * each:
        count -= 1
    return count


def _next_place(
    ask: Ask, devices: list[Device], left: int, links: dict[frozenset[str], int], prefer: Sequence[Place]
) -> Place:
    """The place of the next replica, which leaves room for the `left - 1` after it."""
    slots = {d.gpu.uuid: slots_on(d, ask) for d in devices}
    each = ask.resources.gpus
    open_ = [d for d in devices if slots[d.gpu.uuid]]
    ranks = {d.gpu.uuid: _rank(d, ask, open_, links) for d in open_}

    def leaves_room(chosen: Place) -> bool:
        after = {uuid: n - (uuid in chosen) for uuid, n in slots.items()}
        return _feasible(after, each, left - 1) == left - 1

    for before in prefer:
        if len(before) == each and all(slots.get(uuid) for uuid in before) and leaves_room(before):
            same = sum(1 for d in open_ for claim in d.claims if d.gpu.uuid in before and claim.body == ask.body)
            if not same:
                return before
    ordered = sorted(ranks, key=lambda uuid: ranks[uuid])
    chosen = ordered[:1] if each == 1 else _together(ordered, each, ranks, links)
    if not leaves_room(tuple(chosen)):
        chosen = sorted(ranks, key=lambda uuid: (-slots[uuid], ranks[uuid]))[:each]
    return tuple(sorted(chosen, key=lambda uuid: next(d.gpu.index for d in open_ if d.gpu.uuid == uuid)))


_Rank = tuple[int, int, int, int, int, str]


def _rank(device: Device, ask: Ask, others: list[Device], links: dict[frozenset[str], int]) -> _Rank:
    """The smaller, the better: where no replica of this body is, in good health, tightest, with the fewest friends."""
    uuid = device.gpu.uuid
    size = device.free if device.free is not None else device.gpu.memory_total or 0
    return (
        sum(1 for claim in device.claims if claim.body == ask.body and claim.deployment == ask.deployment),
        int(device.gpu.health is not GpuHealth.OK),
        size,
        sum(links.get(frozenset((uuid, other.gpu.uuid)), 0) for other in others),
        device.gpu.index,
        uuid,
    )


def _together(ordered: list[str], each: int, ranks: dict[str, _Rank], links: dict[frozenset[str], int]) -> list[str]:
    """`each` devices with the most NVLinks among them: the best of the groups that grow from every device."""

    def joined(uuid: str, group: list[str]) -> int:
        return sum(links.get(frozenset((uuid, other)), 0) for other in group)

    best: tuple[tuple[int, list[_Rank]], list[str]] | None = None
    for seed in ordered:
        group, inside = [seed], 0
        while len(group) < each:
            rest = (uuid for uuid in ordered if uuid not in group)
            chosen = min(rest, key=lambda uuid: (-joined(uuid, group), ranks[uuid]))
            inside += joined(chosen, group)
            group.append(chosen)
        score = (-inside, sorted(ranks[uuid] for uuid in group))
        if best is None or score < best[0]:
            best = (score, group)
    return best[1] if best else []


def _links(sight: Sight) -> dict[frozenset[str], int]:
    """How many active NVLinks join two GPUs, directly or through switches that both are on."""
    active = {facts.uuid: [link for link in facts.nvlinks if link.active] for facts in sight.facts}
    switched = {uuid: sum(1 for link in links if link.peer is None) for uuid, links in active.items()}
    joined: dict[frozenset[str], int] = {}
    for one, links in active.items():
        for other in active:
            if one == other:
                continue
            direct = sum(1 for link in links if link.peer == other)
            count = direct + min(switched[one], switched[other])
            pair = frozenset((one, other))
            joined[pair] = max(count, joined.get(pair, 0))
    return joined


def place_names(places: Sequence[Place], sight: Sight) -> str:
    """The devices of some places in words: gpu2, or gpu0, gpu1 and gpu4."""
    by_uuid = {gpu.uuid: gpu for gpu in sight.gpus}
    gpus = [by_uuid[uuid] for uuid in dict.fromkeys(uuid for each in places for uuid in each) if uuid in by_uuid]
    names = [device_name(gpu, by_uuid.get(gpu.parent or "")) for gpu in gpus]
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _refusal(ask: Ask, devices: list[Device], sight: Sight) -> tuple[str, bool]:
    """Why there is no place, the nearest devices first; and whether memory in use is what stands in the way."""
    begin = needs(ask.resources)
    if ask.peak is not None and ask.peak != ask.resources.vram:
        begin += f" (measured peak {gib(ask.peak)})"
    if not devices:
        return f"{begin}; {_none_such(ask.resources, sight)}", False
    found = [obstacle for device in devices if (obstacle := obstacle_on(device, ask)) is not None]
    found.sort(key=lambda one: one.nearness, reverse=True)
    if len(found) < len(devices):
        begin += f", {len(devices) - len(found)} would do"
    texts = [one.text for one in found[:SHOWN_DEVICES]]
    if len(found) > SHOWN_DEVICES:
        texts.append(f"and {len(found) - SHOWN_DEVICES} more")
    return f"{begin}; {', '.join(texts)}", any(one.held for one in found)


def _none_such(asks: Resources, sight: Sight) -> str:
    """That no device is of the kind asked for, and what there is."""
    if not sight.gpus:
        return "NVML shows no GPU on this host"
    whole = [gpu for gpu in sight.gpus if gpu.parent is None]
    instances = [gpu for gpu in sight.gpus if gpu.parent is not None]
    there = _counted(gpu.name for gpu in whole)
    if asks.mig is not None:
        profiles = _counted(gpu.profile or "?" for gpu in instances)
        return f"MIG instances here: {profiles or 'none'} ({there})"
    if all(gpu.mig for gpu in whole):
        return f"every GPU here is cut into MIG instances ({_counted(gpu.profile or '?' for gpu in instances)})"
    known = sorted({label for facts in sight.facts for label in facts.labels})
    labels = f"; labels: {', '.join(known) or 'none'}" if asks.gpu_labels else ""
    return f"this host has {there}{labels}"


def _counted(names: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} × {name}" for name, count in counts.items())


# --- what could be -----------------------------------------------------------------------------------------------


def never_fits(asks: Resources, replicas: int, sight: Sight) -> str | None:
    """Why the replicas could not all be placed even if every device were empty and well; `None` when they could.

    Nothing is judged while NVML cannot be trusted, nor of a device that is lost or does not answer: it may come back.
    """
    if not asks.gpus or sight.trouble:
        return None
    ask = Ask(asks)
    devices = [device for device in devices_in(sight, ()) if matches(device, asks)]
    if not devices:
        return f"{needs(asks)}; {_none_such(asks, sight)}"
    slots = {device.gpu.uuid: _slots_at_best(device.gpu, ask, replicas) for device in devices}
    room = _feasible(slots, asks.gpus, replicas)
    if room >= replicas:
        return None
    largest = max((at_best(device.gpu) or 0 for device in devices), default=0)
    if not room and asks.vram is not None and largest < asks.vram:
        return f"{needs(asks)}; the largest here has {gib(largest)}"
    if not room:
        fitting = sum(1 for n in slots.values() if n)
        return f"{needs(asks)}; this host has {fitting} such"
    return f"{needs(asks)} for each of {replicas} replicas; this host has room for {room}"


def _slots_at_best(gpu: Gpu, ask: Ask, replicas: int) -> int:
    best = at_best(gpu)
    if best is None:
        silent = gpu.health is not GpuHealth.OK  # it tells its memory when it is well
        return (1 if ask.whole else replicas) if silent else int(ask.resources.vram is None)
    if best < (ask.resources.vram or 0):
        return 0
    return 1 if ask.whole else best // ask.need


def without(sight: Sight, claims: Sequence[Claim], gone: Collection[str]) -> tuple[Sight, tuple[Claim, ...]]:
    """The same devices as they would be without these replicas: their claims void and their memory free.

    One whose memory cannot be attributed to it is taken to hold that of all processes that nobody knows.
    """
    touched = {claim.uuid for claim in claims if claim.replica in gone}
    uses = {use.uuid: use for use in sight.uses}
    gpus = []
    for gpu in sight.gpus:
        use = uses.get(gpu.uuid)
        if gpu.uuid not in touched and not (use and any(p.replica in gone for p in use.processes)):
            gpus.append(gpu)
            continue
        owners = {claim.replica for claim in claims if claim.uuid == gpu.uuid and claim.replica in gone}
        emptied, uses[gpu.uuid] = _emptied(gpu, use, gone, owners)
        gpus.append(emptied)
    left = tuple(claim for claim in claims if claim.replica not in gone)
    return replace(sight, gpus=tuple(gpus), uses=tuple(uses.values())), left


def _emptied(gpu: Gpu, use: GpuUse | None, gone: Collection[str], owners: set[str]) -> tuple[Gpu, GpuUse]:
    processes = use.processes if use else ()
    stays = tuple(p for p in processes if p.replica not in gone)
    unexplained = use.unexplained if use else None
    free, best = really_free(gpu), at_best(gpu)
    if free is None or best is None:
        return gpu, GpuUse(gpu.uuid, stays, unexplained)
    told = {p.replica for p in processes if p.memory is not None}
    if owners <= told or (use is not None and all(map(_known, processes))):
        free += sum(p.memory or 0 for p in processes if p.replica in gone)
    else:
        stays, unexplained = tuple(filter(_known, stays)), 0
        free = best - sum(p.memory or 0 for p in stays)
    free = min(free, best)
    emptied = replace(gpu, memory_free=free, memory_used=(gpu.memory_total or 0) - free - (gpu.memory_reserved or 0))
    return emptied, GpuUse(gpu.uuid, stays, unexplained)


def _known(process: GpuProcess) -> bool:
    """Whether it is known whose process this is, and what it holds. One in another pid namespace is nobody's."""
    named = process.replica is not None or process.user is not None or process.command is not None
    return named and process.memory is not None
