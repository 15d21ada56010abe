"""Rollouts of several deployments on the same GPUs: whoever waits for places has none that another one waits for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck_agent.drivers.base import Life, Resources
from quarterdeck_agent.places import waits_for
from quarterdeck_agent.plan import plan
from quarterdeck_agent.promises import foreseen, kept, promised
from quarterdeck_agent.protocol import RevisionOutcome
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.steps import Stage, Start
from tests.agent.plan.world import World, deploying, found, revision, seen_replica, serving

GIB = 1 << 30
WHOLE = Resources(gpus=1)


@dataclass
class Together:
    """Several deployments on one host, looked after as the reconciler does. `busy` are GPUs that strangers have."""

    worlds: dict[str, World]
    gpus: int
    busy: set[str] = field(default_factory=set)

    def seen(self) -> Seen:
        told = [world.seen() for world in self.worlds.values()]
        base = World(next(iter(self.worlds.values())).d)
        base.gpus = {f"gpu-{n}": 80 * GIB for n in range(self.gpus)}
        base.strangers = dict.fromkeys(self.busy, 70 * GIB)
        return replace(
            base.seen(),
            replicas=tuple(replica for one in told for replica in one.replicas),
            staged=frozenset[str]().union(*(one.staged for one in told)),
            left={body: places for one in told for body, places in one.left.items()},
        )

    def tick(self) -> None:
        """One pass over all, and half a second."""
        deployments = [world.d for world in self.worlds.values()]
        asks = {r.body: WHOLE for d in deployments for r in (d.target, d.live) if r is not None}
        now = next(iter(self.worlds.values())).now
        keeping = kept(deployments, asks, self.seen(), {}, now)
        for world in self.worlds.values():
            for step in plan(world.d, WHOLE, promised(keeping, {}, self.seen()), world.now, WHOLE):
                if not isinstance(step, Stage):  # its files come when the test says so
                    world.perform(step)
        for world in self.worlds.values():
            world.turn(0.5)

    def crash(self, name: str, body: str) -> None:
        """The first running replica of a body ends."""
        world = self.worlds[name]
        for key, replica in world.replicas.items():
            if replica.found.body == body and replica.running:
                gone = replace(replica.found, life=Life.EXITED, exit_code=1)
                world.replicas[key] = replace(replica, found=gone, ready=False, ready_since=None)
                return

    def claimed_twice(self) -> bool:
        held = [uuid for world in self.worlds.values() for r in world.replicas.values() for uuid in r.found.gpus]
        return len(held) != len(set(held))

    def rolling(self) -> list[str]:
        return [name for name, world in self.worlds.items() if world.d.target.outcome is RevisionOutcome.PENDING]


def rolling_out(name: str, at: list[str], replicas: int, *, staged: bool = True) -> World:
    """A deployment whose first revision serves on these GPUs, on its way to as many replicas of the next one."""
    world = serving(1, f"{name}-old", replicas=len(at), warm=0.0)
    live = world.d.live
    assert live is not None
    world.replicas = {
        f"{name}-1-{n}": seen_replica(
            f"{name}-1-{n}",
            live.body,
            found=found(f"{name}-1-{n}", live.body, deployment=name, gpus=(uuid,), exclusive=True),
        )
        for n, uuid in enumerate(at)
    }
    deploying(world, revision(2, f"{name}-new", replicas=replicas, warm=0.0, dwell=0.0, deadline=86400.0))
    world.d = replace(world.d, name=name)
    world.asks = WHOLE
    if staged:
        stage(world)
    return world


def stage(world: World) -> None:
    """The files of its target are there now."""
    target = replace(world.d.target, image="")
    world.d = replace(world.d, target=target)
    world.staged.add(target.spec.version)


def test_two_rollouts_that_each_found_a_part_of_what_they_need_do_not_wait_for_each_other() -> None:
    one, two = rolling_out("one", ["gpu-0", "gpu-1"], 2), rolling_out("two", ["gpu-2", "gpu-3"], 2, staged=False)
    host = Together({"two": two, "one": one}, 6, busy={"gpu-5"})
    host.tick()  # the first one finds one place of its two, the second is not staged
    assert not [step for step in one.taken if isinstance(step, Start)]
    says = "there is room for 1 of 2 replicas; the next one needs one GPU for itself; gpu5 is not empty"
    assert says in waits_for(one.d, WHOLE, WHOLE, host.seen(), one.now)
    stage(two)
    host.busy.clear()
    for _ in range(60):
        host.tick()
    assert host.rolling() == []


def test_a_rollout_keeps_the_places_it_has_had_while_its_replica_waits_to_be_started_again() -> None:
    one, two = rolling_out("one", [], 2), rolling_out("two", [], 1, staged=False)
    one.d, two.d = replace(one.d, live=None), replace(two.d, live=None)
    host = Together({"two": two, "one": one}, 2)
    one.never_ready = frozenset({"one-new"})
    host.tick()
    host.crash("one", "one-new")
    host.tick()
    stage(two)
    one.never_ready = frozenset()
    for _ in range(40):
        host.tick()
    assert host.rolling() == ["two"]
    assert one.running("one-new") == 2


def test_what_a_rollout_is_about_to_take_is_foreseen_for_who_asks_and_no_plan_waits_for_it() -> None:
    one = rolling_out("one", [], 1, staged=False)
    one.d = replace(one.d, live=None)
    host = Together({"one": one}, 1)
    deployments, asks = [one.d], {"one-new": WHOLE}
    keeping = kept(deployments, asks, host.seen(), {}, one.now)
    assert promised(keeping, {}, host.seen()).promised == ()
    (claim,) = foreseen(deployments, asks, host.seen(), keeping, {})
    assert (claim.uuid, claim.deployment, claim.size, claim.note) == ("gpu-0", "one", None, "starting")
    host.busy = {"gpu-0"}
    assert foreseen(deployments, asks, host.seen(), keeping, {}) == ()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_rollouts_that_fit_one_after_another_all_come_through(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=3), label="replicas of each")
    spare = max(sizes) + data.draw(st.integers(0, 1), label="more")  # so each fits beside all the old ones
    places = [f"gpu-{n}" for n in range(sum(sizes) + spare)]
    free = places[sum(sizes) :]
    worlds = {}
    for number, size in enumerate(sizes):
        at, places = places[:size], places[size:]
        worlds[f"d{number}"] = rolling_out(f"d{number}", at, size, staged=False)
    host = Together(worlds, sum(sizes) + spare, busy=set(free))
    comes = data.draw(st.permutations([*worlds, *free]), label="staged, and left by strangers, one after the other")
    crash = st.tuples(st.integers(1, 30), st.sampled_from(sorted(worlds)), st.sampled_from(["old", "new"]))
    crashes = data.draw(st.lists(crash, max_size=2), label="crashes")
    for time in range(120):
        if time % 2 == 0 and time // 2 < len(comes):
            came = comes[time // 2]
            host.busy.discard(came)
            if came in worlds:
                stage(worlds[came])
        for _, name, kind in (one for one in crashes if one[0] == time):
            host.crash(name, f"{name}-{kind}")
        host.tick()
        assert not host.claimed_twice()
        if time > 50 and not host.rolling():
            break
    assert host.rolling() == [], "they wait for each other"
    for number, size in enumerate(sizes):
        assert host.worlds[f"d{number}"].running(f"d{number}-new") == size
