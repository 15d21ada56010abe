"""Which GPUs a replica gets: devices, what is claimed and really held, what is asked → places, or why not. Pure.

A device is a GPU without MIG, or a MIG instance. What it has to give is what NVML says is free, less what was promised
to replicas that have not taken it yet. Nothing here knows of revisions or rollouts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from quarterdeck_agent.drivers.base import Found, Life, Resources
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuProcess, GpuUse

NOTICEABLE = 256 << 20
"""A process with this much memory is in the way of a claim on the whole device."""

LEAK = 512 << 20
"""So is this much memory that no process accounts for."""

OWN_SHARE = 0.025
"""Share of a GPU's memory that drivers keep for themselves at most, where they do not tell how much it is."""

SHOWN_DEVICES = 3
SHOWN_HOLDERS = 2

Place = tuple[str, ...]
"""The uuids of the devices of one replica."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one replica takes of one device: `size` bytes of its memory, `None` for all of it."""

    uuid: str
    replica: str
    deployment: str = ""
    body: str = ""
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Sight:
    """What NVML shows of this host's GPUs. `trouble` says why it cannot be trusted now, and is empty while it can."""

    gpus: tuple[Gpu, ...] = ()
    uses: tuple[GpuUse, ...] = ()
    facts: tuple[GpuFacts, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """What each of some replicas of one body asks for.

    `peak` is the most that one of them was measured to hold on one device: where given, it counts instead of the claim.
    With `tolerant`, memory that belongs to no process is not in the way of a claim on a whole device.
    """

    resources: Resources
    deployment: str = ""
    body: str = ""
    peak: int | None = None
    tolerant: bool = False

    @property
    def whole(self) -> bool:
        """Whether nobody else may be on the device."""
        return self.resources.whole_gpus

    @property
    def need(self) -> int:
        """Bytes that have to be free on each device."""
        return max(1, self.peak if self.peak is not None else self.resources.vram or 0)

    def claims(self, replica: str, place: Place) -> tuple[Claim, ...]:
        """What a replica with this place takes."""
        size = None if self.whole else self.need
        return tuple(Claim(uuid, replica, self.deployment, self.body, size) for uuid in place)


@dataclass(frozen=True, slots=True)
class Placing:
    """The places found, at most as many as were asked for; `refusal` says in one line why there are not more.

    `held` tells that memory which is in use stands in the way: it may come free.
    """

    places: tuple[Place, ...]
    refusal: str = ""
    held: bool = False


@dataclass(frozen=True, slots=True)
class _Device:
    """One device as placing sees it. `free` is what it has to give, `None` where NVML does not tell."""

    gpu: Gpu
    name: str
    free: int | None
    claims: tuple[Claim, ...]
    processes: tuple[GpuProcess, ...]
    unowned: int
    leaked: int
    labels: frozenset[str]
    ailing: Gpu | None


@dataclass(frozen=True, slots=True)
class _Obstacle:
    """Why a device does not do, and how near it is to doing: larger `nearness` is nearer."""

    text: str
    nearness: tuple[int, int]
    held: bool = False


def claims_of(replicas: Iterable[Found]) -> tuple[Claim, ...]:
    """What the replicas that the engine runs have claimed. Of older ones without a memory of it: what they hold."""
    return tuple(
        Claim(uuid, found.id, found.deployment, found.body, None if found.exclusive else found.vram or 0)
        for found in replicas
        if found.life is not Life.EXITED
        for uuid in found.gpus
    )


# --- finding places ----------------------------------------------------------------------------------------------


def place(ask: Ask, count: int, sight: Sight, claims: Sequence[Claim], prefer: Sequence[Place] = ()) -> Placing:
    """Places for `count` replicas, as many as there are. `prefer` are places they had before, taken where still good.

    Fits tightly, so that large holes stay; spreads replicas of one body; keeps the devices of one replica together on
    NVLink. The same input gives the same places.
    """
    if not ask.resources.gpus:
        return Placing(((),) * count)
    if sight.trouble:
        return Placing((), f"{needs(ask.resources)}; {sight.trouble}")
    devices = [device for device in _devices(sight, claims) if _matches(device, ask.resources)]
    links = _links(sight)
    wanted = _feasible({d.gpu.uuid: _slots(d, ask) for d in devices}, ask.resources.gpus, count)
    taken = list(claims)
    places: list[Place] = []
    while len(places) < wanted:
        found = _next_place(ask, devices, wanted - len(places), links, prefer)
        places.append(found)
        taken.extend(ask.claims(f"new {len(places)}", found))
        devices = [device for device in _devices(sight, taken) if _matches(device, ask.resources)]
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
    devices = {device.gpu.uuid: device for device in _devices(sight, claims)}
    for uuid in uuids:
        device = devices.get(uuid)
        if device is None:
            return f"GPU {uuid} is not there any more"
        if (found := _obstacle(device, ask)) is not None:
            return found.text
    return None


def _feasible(slots: dict[str, int], each: int, count: int) -> int:
    """For how many replicas, of `count`, there is room when each takes `each` different devices."""
    while count and sum(min(n, count) for n in slots.values()) < count * each:
        count -= 1
    return count


def _next_place(
    ask: Ask, devices: list[_Device], left: int, links: dict[frozenset[str], int], prefer: Sequence[Place]
) -> Place:
    """The place of the next replica, which leaves room for the `left - 1` after it."""
    slots = {d.gpu.uuid: _slots(d, ask) for d in devices}
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


def _rank(device: _Device, ask: Ask, others: list[_Device], links: dict[frozenset[str], int]) -> _Rank:
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


# --- one device --------------------------------------------------------------------------------------------------


def _devices(sight: Sight, claims: Sequence[Claim]) -> list[_Device]:
    """All devices that can take claims, in a fixed order."""
    by_uuid = {gpu.uuid: gpu for gpu in sight.gpus}
    uses = {use.uuid: use for use in sight.uses}
    labels = {facts.uuid: frozenset(facts.labels) for facts in sight.facts}
    devices = []
    for gpu in sorted(sight.gpus, key=lambda g: (g.index, g.uuid)):
        if gpu.mig:
            continue
        parent = by_uuid.get(gpu.parent) if gpu.parent else None
        mine = tuple(claim for claim in claims if claim.uuid == gpu.uuid)
        use = uses.get(gpu.uuid)
        free = really_free(gpu)
        devices.append(
            _Device(
                gpu=gpu,
                name=device_name(gpu, parent),
                free=None if free is None else free - _promised(mine, use, gpu),
                claims=mine,
                processes=use.processes if use else (),
                unowned=_unowned(gpu, use),
                leaked=(use.unexplained or 0) if use else 0,
                labels=labels.get(gpu.uuid, frozenset()) | labels.get(gpu.parent or "", frozenset()),
                ailing=next((g for g in (gpu, parent) if g and g.health in (GpuHealth.SICK, GpuHealth.LOST)), None),
            )
        )
    return devices


def device_name(gpu: Gpu, parent: Gpu | None = None) -> str:
    """A device in messages: `gpu0`, or `gpu0 MIG 1g.10gb` of the GPU that it is cut from."""
    if gpu.parent is None:
        return f"gpu{gpu.index}"
    number = parent.index if parent is not None else gpu.index
    return f"gpu{number} MIG {gpu.profile or gpu.uuid}"


def place_names(places: Sequence[Place], sight: Sight) -> str:
    """The devices of some places in words: gpu2, or gpu0, gpu1 and gpu4."""
    by_uuid = {gpu.uuid: gpu for gpu in sight.gpus}
    gpus = [by_uuid[uuid] for uuid in dict.fromkeys(uuid for each in places for uuid in each) if uuid in by_uuid]
    names = [device_name(gpu, by_uuid.get(gpu.parent or "")) for gpu in gpus]
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def really_free(gpu: Gpu) -> int | None:
    """Bytes that NVML says are free, or what follows from what it says is used."""
    if gpu.memory_free is not None:
        return gpu.memory_free
    if gpu.memory_total is None or gpu.memory_used is None:
        return None
    return max(0, gpu.memory_total - gpu.memory_used - (gpu.memory_reserved or 0))


def _promised(claims: Sequence[Claim], use: GpuUse | None, gpu: Gpu) -> int:
    """Bytes that were claimed on a device and are not held yet by who claimed them."""
    held = _held(use)
    # What a process holds may be untold; then it is taken to hold its claim, as far as the device is used at all.
    untold = {p.replica for p in use.processes if p.memory is None and p.replica} if use else set()
    pool = max(0, (gpu.memory_used or 0) - sum(held.values()))
    promised = 0
    for claim in claims:
        has = held.get(claim.replica, 0)
        if claim.replica in untold:
            assumed = min(max(0, (claim.size or 0) - has), pool)
            has, pool = has + assumed, pool - assumed
        promised += max(0, (claim.size or 0) - has)
    return promised


def _held(use: GpuUse | None) -> dict[str, int]:
    """By replica, the bytes its processes hold."""
    held: dict[str, int] = {}
    for process in use.processes if use else ():
        if process.replica is not None:
            held[process.replica] = held.get(process.replica, 0) + (process.memory or 0)
    return held


def _unowned(gpu: Gpu, use: GpuUse | None) -> int:
    """Bytes in use at this moment that no process accounts for: leaked, or about to come free.

    A process leaves the list a little before its memory is free: what was told of leaks comes too late to start on.
    """
    free = really_free(gpu)
    processes = use.processes if use else ()
    if free is None or gpu.memory_total is None or any(p.memory is None for p in processes):
        return (use.unexplained or 0) if use else 0
    own = gpu.memory_reserved if gpu.memory_reserved is not None else int(gpu.memory_total * OWN_SHARE)
    return max(0, gpu.memory_total - free - own - sum(p.memory or 0 for p in processes))


def _matches(device: _Device, asks: Resources) -> bool:
    """Whether a device is of the kind asked for, however busy."""
    if asks.mig is None and device.gpu.parent is not None:
        return False
    if asks.mig is not None and (device.gpu.profile or "").casefold() != asks.mig.casefold():
        return False
    if asks.gpu_model is not None and asks.gpu_model.casefold() not in device.gpu.name.casefold():
        return False
    return device.labels >= set(asks.gpu_labels)


def _slots(device: _Device, ask: Ask) -> int:
    """How many replicas the device could take one beside the other."""
    if _obstacle(device, ask) is not None:
        return 0
    return 1 if ask.whole or device.free is None else device.free // ask.need


def _obstacle(device: _Device, ask: Ask) -> _Obstacle | None:
    """What keeps one replica from this device."""
    if device.ailing is not None:
        why = f": {device.ailing.why}" if device.ailing.why else ""
        return _Obstacle(f"{device.name} is {device.ailing.health.value}{why}", (0, 0))
    owners = sorted({claim.deployment for claim in device.claims if claim.size is None})
    if owners:
        return _Obstacle(f"{device.name} is claimed whole by {' and '.join(owners)}", (1, 0))
    if ask.whole and (found := _not_empty(device, ask)) is not None:
        return found
    if ask.whole and ask.resources.vram is None and ask.peak is None:
        return None
    if device.free is None:
        return _Obstacle(f"{device.name} does not tell its memory", (1, 1))
    if device.free >= ask.need:
        return None
    free = max(0, device.free)
    return _Obstacle(f"{device.name} has {gib(free)} free{_because(device)}", (3, free), held=True)


def _not_empty(device: _Device, ask: Ask) -> _Obstacle | None:
    """Who is on a device that is asked for whole."""
    if device.claims:
        owners = " and ".join(sorted({claim.deployment for claim in device.claims}))
        return _Obstacle(f"{device.name} is shared by {owners}", (1, 2))
    large = sum(p.memory or 0 for p in device.processes if (p.memory or 0) >= NOTICEABLE)
    unowned = device.unowned - (device.leaked if ask.tolerant else 0)
    unowned = unowned if unowned >= LEAK else 0
    if large + unowned == 0:
        return None
    return _Obstacle(f"{device.name} is not empty{_because(device)}", (2, -large - unowned), held=True)


# --- in words ----------------------------------------------------------------------------------------------------


def gib(size: int) -> str:
    """A size for people, in GiB or MiB."""
    if size < 1 << 30:
        return f"{size / (1 << 20):.0f} MiB" if size else "0 GiB"
    return f"{size / (1 << 30):.1f}".removesuffix(".0") + " GiB"


def needs(asks: Resources) -> str:
    """What one replica asks for, as the beginning of a sentence."""
    what = f"MIG instance {asks.mig}" if asks.mig else f"{asks.gpu_model} GPU" if asks.gpu_model else "GPU"
    labels = f" labelled {', '.join(asks.gpu_labels)}" if asks.gpu_labels else ""
    many = asks.gpus > 1
    some = f"{asks.gpus} {what}s" if many else f"one {what}"
    if asks.vram is None:
        return f"needs {some}{labels}" + ("" if asks.mig else " for itself")
    alone = " for itself" if asks.exclusive else ""
    return f"needs {gib(asks.vram)} on {'each of ' if many else ''}{some}{labels}{alone}"


def _refusal(ask: Ask, devices: list[_Device], sight: Sight) -> tuple[str, bool]:
    """Why there is no place, the nearest devices first; and whether memory in use is what stands in the way."""
    begin = needs(ask.resources)
    if ask.peak is not None and ask.peak != ask.resources.vram:
        begin += f" (measured peak {gib(ask.peak)})"
    if not devices:
        return f"{begin}; {_none_such(ask.resources, sight)}", False
    found = [obstacle for device in devices if (obstacle := _obstacle(device, ask)) is not None]
    found.sort(key=lambda one: one.nearness, reverse=True)
    if len(found) < len(devices):
        begin += f", {len(devices) - len(found)} would do"
    texts = [one.text for one in found[:SHOWN_DEVICES]]
    if len(found) > SHOWN_DEVICES:
        texts.append(f"and {len(found) - SHOWN_DEVICES} more")
    return f"{begin}; {', '.join(texts)}", any(one.held for one in found)


def _because(device: _Device) -> str:
    """Who has a device's memory, the largest share first, to follow what is said of it."""
    shares = _shares(device)
    if not shares:
        return ""
    texts = [text for _, text in shares[:SHOWN_HOLDERS]]
    if len(shares) > SHOWN_HOLDERS:
        texts.append(f"{len(shares) - SHOWN_HOLDERS} more")
    return ": " + " and ".join(texts)


def _shares(device: _Device) -> list[tuple[int, str]]:
    """The shares of a device's memory, in bytes and in words."""
    shares: list[tuple[int, str]] = []
    held: dict[str, int] = {}
    names: dict[str, str] = {claim.replica: claim.deployment for claim in device.claims}
    for process in device.processes:
        if process.replica is None:
            if (process.memory or 0) >= NOTICEABLE or process.memory is None:
                size = gib(process.memory) if process.memory is not None else "memory"
                shares.append((process.memory or 0, f"{size} held by unmanaged {who(process)}"))
        else:
            held[process.replica] = held.get(process.replica, 0) + (process.memory or 0)
            names.setdefault(process.replica, process.deployment or process.replica)
    owned: dict[str, int] = {}
    claimed = {claim.replica: claim.size or 0 for claim in device.claims}
    for replica, name in names.items():
        owned[name] = owned.get(name, 0) + max(held.get(replica, 0), claimed.get(replica, 0))
    shares += [(size, f"{gib(size)} taken by {name}") for name, size in owned.items()]
    if device.unowned >= LEAK:
        how = "leaked" if device.leaked >= LEAK else "not free yet, or leaked"
        shares.append((device.unowned, f"{gib(device.unowned)} held by no process: {how}"))
    return sorted(shares, key=lambda share: (-share[0], share[1]))


def who(process: GpuProcess) -> str:
    """A process in words: pid 4711 (alice, python)."""
    known = ", ".join(part for part in (process.user, process.command) if part)
    return f"pid {process.pid}" + (f" ({known})" if known else "")


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

    Nothing is judged while NVML cannot be trusted, nor of a device that is lost: it may come back.
    """
    if not asks.gpus or sight.trouble:
        return None
    ask = Ask(asks)
    devices = [device for device in _devices(sight, ()) if _matches(device, asks)]
    if not devices:
        return f"{needs(asks)}; {_none_such(asks, sight)}"
    slots = {device.gpu.uuid: _slots_at_best(device.gpu, ask, replicas) for device in devices}
    room = _feasible(slots, asks.gpus, replicas)
    if room >= replicas:
        return None
    largest = max((_at_best(device.gpu) or 0 for device in devices), default=0)
    if not room and asks.vram is not None and largest < asks.vram:
        return f"{needs(asks)}; the largest here has {gib(largest)}"
    if not room:
        fitting = sum(1 for n in slots.values() if n)
        return f"{needs(asks)}; this host has {fitting} such"
    return f"each of {replicas} replicas {needs(asks)}; this host has room for {room}"


def _slots_at_best(gpu: Gpu, ask: Ask, replicas: int) -> int:
    best = _at_best(gpu)
    if best is None:
        return replicas if gpu.health is GpuHealth.LOST and not ask.whole else int(ask.resources.vram is None)
    if best < (ask.resources.vram or 0):
        return 0
    return 1 if ask.whole else best // ask.need


def _at_best(gpu: Gpu) -> int | None:
    """Bytes that an empty device would have free."""
    return None if gpu.memory_total is None else gpu.memory_total - (gpu.memory_reserved or 0)


def without(sight: Sight, claims: Sequence[Claim], gone: Collection[str]) -> tuple[Sight, tuple[Claim, ...]]:
    """The same devices as they would be without these replicas: their claims void and their memory free.

    One whose memory is not attributed to it is taken to hold what is not known to be another replica's.
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
    told = {p.replica for p in processes if p.memory is not None}
    unexplained = use.unexplained if use else None
    free, best = really_free(gpu), _at_best(gpu)
    if free is None or best is None:
        return gpu, GpuUse(gpu.uuid, stays, unexplained)
    if owners <= told:
        free += sum(p.memory or 0 for p in processes if p.replica in gone)
    else:
        stays, unexplained = tuple(p for p in stays if p.replica is not None), 0
        free = best - sum(p.memory or 0 for p in stays)
    free = min(free, best)
    emptied = replace(gpu, memory_free=free, memory_used=(gpu.memory_total or 0) - free - (gpu.memory_reserved or 0))
    return emptied, GpuUse(gpu.uuid, stays, unexplained)
