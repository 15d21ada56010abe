"""What a caller may ask for, turned into wanted: every change is checked, previewed and written here, and never acted.

A change is worked out as a `Draft` by pure steps from what is wanted now; a preview shows the draft, a change writes it
in one transaction. Both are the same code, so a preview cannot promise what the change would not do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quarterdeck_agent.bundle import ModelConfig, check_env, check_name, diff, parse, shown
from quarterdeck_agent.catalogue import Catalogue, Launch
from quarterdeck_agent.counts import rolling
from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.errors import Conflict, InvalidInput, NotFound
from quarterdeck_agent.gpus.placement import gib, never_fits, place_names
from quarterdeck_agent.gpus.torch_build import TorchBuild, unsupported
from quarterdeck_agent.handover import Capacity, Choice, Group, Question, choose, grow, start_times, with_pause
from quarterdeck_agent.performing import Recipe
from quarterdeck_agent.protocol import (
    AnyRequest,
    Change,
    ChangeKind,
    ChangeRequest,
    DeployRequest,
    Limits,
    Operation,
    Preview,
    Revision,
    RollbackRequest,
    ScaleRequest,
    Spec,
    Version,
)
from quarterdeck_agent.rollbacks import Past, passed_over
from quarterdeck_agent.store import NewOperation, NewRevision, Store
from quarterdeck_agent.wanted import WantedDeployment, WantedRevision

MOST_REPLICAS = 64
LONGEST_WHY = 1000


@dataclass(frozen=True, slots=True)
class Draft:
    """A change worked out: the revision and operation it would write, and what to tell about it."""

    kind: str
    deployment: str
    spec: Spec
    body: str
    choice: Choice
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    command: str
    generation: int
    why: str = ""
    rollback_of: int | None = None
    starts_nothing: bool = False
    image: str | None = None
    golden: int = 0
    asks: Resources = dataclasses.field(default_factory=Resources)
    on: str = ""
    more: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """Edits of wanted. Every method may block on the disk: call it in a thread.

    `engine` is the engine's name, `capacity` tells what the host has to give right now, `written` is called after
    every change that was written, `torch_build` tells what the torch of the agent's own runtimes was built for.
    """

    store: Store
    catalogue: Catalogue
    engine: str
    capacity: Callable[[], Capacity]
    written: Callable[[], None]
    torch_build: Callable[[], TorchBuild | None] = lambda: None

    # --- what can be asked -------------------------------------------------------------------------------------

    def preview(self, kind: ChangeKind, name: str, request: AnyRequest) -> Preview:
        """What the change would do. Raises what `change` would raise."""
        return self._preview(self._drafted(kind, name, request))

    def change(
        self,
        kind: ChangeKind,
        name: str,
        request: AnyRequest,
        by: str,
        operation: str,
        generation: int | None = None,
    ) -> Operation:
        """Write the change; asked again under the same `operation` id, give the first one and change nothing.

        With `generation` only as long as it is the deployment's. Raises `InvalidInput`, `NotFound` and `Conflict`.
        """
        if first := self._first(operation, kind, name):
            return first
        draft = self._drafted(kind, name, request)
        write = self._write_removal if kind == "remove" else self._write
        return write(draft, by, operation, generation)

    # --- drafts ------------------------------------------------------------------------------------------------

    def _drafted(self, kind: ChangeKind, name: str, request: AnyRequest) -> Draft:
        """The draft of a change of this kind, whose request is of the kind's class."""
        drafts: dict[ChangeKind, Callable[[str, Any], Draft]] = {
            "deploy": self._deploy,
            "rollback": self._rollback,
            "scale": self._scale,
            "restart": self._restart,
            "stop": self._stop,
            "remove": self._remove,
        }
        return drafts[kind](name, request)

    def _deploy(self, name: str, request: DeployRequest) -> Draft:
        check_name(name, "name")
        version = self.store.version(request.version)
        now = self._wanted(name)
        base = now.target.spec if now else None
        spec = check_spec(merge(base, request, version, parse(version.config), self._own_deadline(base)))
        return self._draft("deploy", name, spec, request.why, now)

    def _own_deadline(self, base: Spec | None) -> float | None:
        """The start timeout of the version that a spec runs."""
        return None if base is None else parse(self.store.version(base.version).config).health.start_timeout

    def _rollback(self, name: str, request: RollbackRequest) -> Draft:
        now = self._deployment(name)
        target, doubts = self._rollback_target(now, request.to)
        spec = replace(target.spec, stopped=False)
        draft = self._draft("rollback", name, spec, request.why, now)
        return replace(
            draft,
            rollback_of=target.number,
            image=target.image or draft.image,
            command=f"qd rollback {name} --to {target.number}",
            warnings=(*doubts, *draft.warnings),
        )

    def _scale(self, name: str, request: ScaleRequest) -> Draft:
        now = self._deployment(name)
        return self._draft(
            "scale", name, check_spec(replace(now.target.spec, replicas=request.replicas)), request.why, now
        )

    def _restart(self, name: str, request: ChangeRequest) -> Draft:
        now = self._deployment(name)
        old = now.target.spec
        return self._draft("restart", name, replace(old, restart=old.restart + 1, stopped=False), request.why, now)

    def _stop(self, name: str, request: ChangeRequest) -> Draft:
        now = self._deployment(name)
        return self._draft("stop", name, replace((now.live or now.target).spec, stopped=True), request.why, now)

    def _remove(self, name: str, request: ChangeRequest) -> Draft:
        now = self._deployment(name)
        draft = self._draft("remove", name, replace(now.target.spec, stopped=True), request.why, now)
        return replace(draft, changes=(Change("deployment", name, None),))

    def _draft(self, kind: str, name: str, spec: Spec, why: str, now: WantedDeployment | None) -> Draft:
        if len(why) > LONGEST_WHY or not why.isprintable():
            raise InvalidInput("the reason is too long or not a line of text", field="why", hint="Use one line.")
        version = self.store.version(spec.version)
        model = parse(version.config)
        body, image = self._shape(spec, model, now)
        live = now.live if now else None
        capacity = self.capacity()
        asked = self._question(now, spec, model, body, capacity)
        if not spec.stopped and asked.new.replicas:  # what runs already has shown that it can
            check_fits(model.resources, spec, capacity)
        if kind == "deploy":
            self._check_torch(spec, model, capacity)
        grows = live is not None and live.body == body and not spec.stopped
        choice = grow(asked) if grows else choose(spec, asked)
        waiting = spec.limits.in_flight + spec.limits.queue
        choice = with_pause(choice, start_times(self.store.revisions(name)), waiting)
        return Draft(
            kind=kind,
            deployment=name,
            spec=spec,
            body=body,
            choice=choice,
            changes=self._changes(live or (now.target if now else None), spec, version),
            warnings=warnings(model, spec, live, body),
            command=command(kind, name, spec),
            generation=now.generation if now else 0,
            why=why,
            golden=len(model.golden),
            image=image,
            starts_nothing=spec.stopped or (live is not None and live.body == body and not live.spec.stopped),
            asks=model.resources,
            on=place_names(choice.places, capacity.sight),
            more=choice.why if grows and asked.new.replicas else "",
        )

    def _check_torch(self, spec: Spec, model: ModelConfig, capacity: Capacity) -> None:
        """Refuse a version that would find its GPU unusable by the torch that it would run on."""
        facts = capacity.sight.facts
        if not (
            model.resources.gpus and facts and self.catalogue.get(model.runtime).launch(model, self.engine).own_torch
        ):
            return
        build = self.torch_build()
        if build is not None and (why := unsupported(build, facts)) is not None:
            raise InvalidInput(
                f"{spec.label} asks for a GPU that its runtime could not use: {why}",
                field="resources.gpus",
                hint="See `qd doctor --gpu`. A version with gpus = 0 runs on the CPU.",
            )

    def _question(
        self, now: WantedDeployment | None, spec: Spec, model: ModelConfig, body: str, capacity: Capacity
    ) -> Question:
        """What the choice of a handover depends on."""
        live = now.live if now is not None and now.live is not None and not now.live.spec.stopped else None
        warm = now.previous if now is not None and now.previous is not None and now.previous.body != body else None
        name = now.name if now is not None else ""
        running = self._running(now, body, model, capacity)
        peak = self.store.gpu_memory_peak(name, body, spec.version)
        bodies = {body, *(r.body for r in (live, warm) if r is not None)}
        leaving = {c.replica for c in capacity.claims if c.deployment == name and c.body not in bodies}
        capacity = capacity.without(leaving) if leaving else capacity  # of a rollout that this change takes back
        spare = self._spare(name, capacity)
        return Question(
            new=Group(model.resources, max(0, spec.replicas - running), (), peak),
            live=self._group(name, live, capacity) if live is not None else None,
            capacity=capacity,
            warm=self._group(name, warm, capacity) if warm is not None else None,
            deployment=name,
            body=body,
            label=live.spec.label if live is not None else None,
            spare=tuple(sorted(replica for replicas in spare.values() for replica in replicas)),
            spare_of=" and ".join(sorted(spare)),
        )

    def _running(self, now: WantedDeployment | None, body: str, model: ModelConfig, capacity: Capacity) -> int:
        """How many replicas of a body need not be started. Of a warm revision on GPUs those that ended stay ended."""
        if now is None:
            return 0
        if now.live is not None and now.live.body == body and not now.live.spec.stopped:
            return now.live.spec.replicas
        if now.previous is None or now.previous.body != body:
            return 0
        there = {c.replica for c in capacity.claims if (c.deployment, c.body) == (now.name, body)}
        return min(now.previous.spec.replicas, len(there)) if model.resources.gpus else now.previous.spec.replicas

    def _spare(self, name: str, capacity: Capacity) -> dict[str, set[str]]:
        """By deployment, the replicas on GPUs that others than `name` keep for a rollback only."""
        spare: dict[str, set[str]] = {}
        for d in self.store.wanted().deployments if capacity.claims else ():
            if d.name != name and d.previous is not None and d.previous.body not in (d.target.body, _body(d.live)):
                mine = {c.replica for c in capacity.claims if (c.deployment, c.body) == (d.name, d.previous.body)}
                spare |= {d.name: mine} if mine else {}
        return spare

    def _group(self, name: str, revision: WantedRevision, capacity: Capacity) -> Group:
        """The running replicas of a revision."""
        asks = parse(self.store.version(revision.spec.version).config).resources
        mine = {c.replica for c in capacity.claims if (c.deployment, c.body) == (name, revision.body)}
        return Group(asks, revision.spec.replicas, tuple(sorted(mine)), revision.gpu_memory_peak)

    def _shape(self, spec: Spec, model: ModelConfig, now: WantedDeployment | None) -> tuple[str, str | None]:
        """The body and, where it is known, the image. What stops runs nothing, so it needs no runtime any more."""
        if now is not None and spec.stopped:
            running = now.live or now.target
            return running.body, running.image
        launch = self.catalogue.get(model.runtime).launch(model, self.engine)
        return body_digest(spec, model, launch), "" if launch.image is None else same_image(now, spec)

    # --- writing and telling -----------------------------------------------------------------------------------

    def _first(self, operation: str, kind: str, name: str) -> Operation | None:
        """The operation that was written under this id before, if any: a repeat answers with it."""
        try:
            first = self.store.operation(operation)
        except NotFound:
            return None
        if (first.kind, first.target) != (kind, name):
            raise Conflict(
                f"operation {operation} was {first.kind} {first.target} and cannot be used for another change",
                operation=operation,
                hint="Give each change an operation id of its own.",
            )
        return first

    def _write(self, draft: Draft, by: str, operation: str, generation: int | None) -> Operation:
        revision = NewRevision(
            deployment=draft.deployment,
            spec=draft.spec,
            body=draft.body,
            handover=draft.choice.handover,
            handover_why=draft.choice.why,
            why=draft.why,
            rollback_of=draft.rollback_of,
            image=draft.image,
        )
        summary = draft.command.removeprefix("qd ")
        new = NewOperation(operation, draft.kind, draft.deployment, by, summary, draft.why, draft.changes)
        # A caller that names no generation still gets compare-and-set against what this draft was worked out from.
        expected = draft.generation if generation is None else generation
        written, repeated = self.store.propose(revision, new, expected)
        if draft.choice.cools and not repeated:
            self.store.forget_previous(draft.deployment)
        self.written()
        return written

    def _write_removal(self, draft: Draft, by: str, operation: str, generation: int | None) -> Operation:
        summary = f"remove {draft.deployment}"
        new = NewOperation(operation, draft.kind, draft.deployment, by, summary, draft.why, draft.changes)
        written, _ = self.store.mark_removing(draft.deployment, new, generation)
        self.written()
        return written

    def _preview(self, draft: Draft) -> Preview:
        return Preview(
            deployment=draft.deployment,
            generation=draft.generation,
            handover="none" if draft.starts_nothing else draft.choice.handover,
            why=(draft.more or "no replica has to start") if draft.starts_nothing else draft.choice.why,
            expected_pause=None if draft.starts_nothing else draft.choice.expected_pause,
            changes=draft.changes,
            steps=preview_steps(draft),
            warnings=draft.warnings + draft.choice.warnings,
            if_it_fails=if_it_fails(draft),
            command=draft.command,
        )

    # --- looking up --------------------------------------------------------------------------------------------

    def recipe(self, revision: WantedRevision) -> Recipe:
        """All that starting a revision's replicas takes. Raises `NotFound` where its version or runtime is gone."""
        model = parse(self.store.version(revision.spec.version).config)
        launch = self.catalogue.get(model.runtime).launch(model, self.engine)
        return Recipe(model, launch, revision.body, environment(revision.spec, model, launch))

    def _wanted(self, name: str) -> WantedDeployment | None:
        found = next((d for d in self.store.wanted().deployments if d.name == name), None)
        if found is not None and found.removing:
            raise Conflict(
                f"{name} is being removed on this host",
                hint="Wait until `qd status` no longer lists it, then deploy again.",
            )
        return found

    def _deployment(self, name: str) -> WantedDeployment:
        check_name(name, "name")
        found = self._wanted(name)
        if found is None:
            known = ", ".join(d.name for d in self.store.wanted().deployments) or "none"
            raise NotFound(f"there is no deployment {name} on this host", hint=f"Deployments here: {known}.")
        return found

    def _rollback_target(self, now: WantedDeployment, to: int | None) -> tuple[Revision, tuple[str, ...]]:
        """The revision to go back to, and what somebody should know of it before."""
        past = Past(self.store.revisions(now.name), self.store.crashes(now.name))
        live = now.live.number if now.live is not None else None
        failed: tuple[Revision, ...] = ()
        if to is not None:
            found = _numbered(now.name, past.revisions, to)
        elif live is not None and rolling(now):  # a rollout is on its way: take it back
            found = _numbered(now.name, past.revisions, live)
        else:
            current = _numbered(now.name, past.revisions, now.target.number if live is None else live)
            before, failed = past.before(current)
            if before is None:
                raise _no_way_back(now.name, failed)
            found = before
        return found, (*past.doubts(found, live), *passed_over(failed))

    def _changes(self, old: WantedRevision | None, spec: Spec, version: Version) -> tuple[Change, ...]:
        if old is None:
            return (Change("version", None, version.label),)
        result = list(spec_changes(old.spec, spec))
        if old.spec.version != spec.version:
            before = self.store.version(old.spec.version)
            inside = diff(parse(before.config), parse(version.config), before.files, version.files)
            result.extend(change for change in inside if change.field != "version")
        return tuple(result)


# --- pure parts ------------------------------------------------------------------------------------------------


def merge(
    base: Spec | None, request: DeployRequest, version: Version, model: ModelConfig, own_deadline: float | None = None
) -> Spec:
    """The spec a deploy asks for: what it names, else what the running revision has, else the defaults.

    A deadline that was only the running version's own (`own_deadline`) does not bind the next version.
    """
    start = base or Spec(version=version.id, label=version.label)
    if base is None or base.deadline == own_deadline:
        start = replace(start, deadline=model.health.start_timeout)
    named = {
        field: value
        for field in ("replicas", "handover", "env", "limits", "warm", "dwell", "golden", "deadline")
        if (value := getattr(request, field)) is not None
    }
    return replace(start, version=version.id, label=version.label, stopped=False, **named)


def check_spec(spec: Spec) -> Spec:
    """Refuse a spec whose figures make no sense, naming the field."""
    check_env(spec.env, "env")
    limits = spec.limits
    for field, value, low, high in (
        ("replicas", spec.replicas, 1, MOST_REPLICAS),
        ("warm", spec.warm, 0, 7 * 86400),
        ("dwell", spec.dwell, 0, 3600),
        ("deadline", spec.deadline, 1, 86400),
        ("limits.in_flight", limits.in_flight, 1, 1_000_000),
        ("limits.queue", limits.queue, 0, 1_000_000),
        ("limits.timeout", limits.timeout, 0.1, 86400),
        ("limits.drain", limits.drain, 0, 86400),
        ("limits.hold", limits.hold, 1, 86400),
        ("limits.release", limits.release, 1, 86400),
    ):
        if not low <= value <= high:
            raise InvalidInput(f"{field} is {value:g}", field=field, hint=f"Use a value from {low:g} to {high:g}.")
    return spec


def _body(revision: WantedRevision | None) -> str | None:
    return None if revision is None else revision.body


def check_fits(asks: Resources, spec: Spec, capacity: Capacity) -> None:
    """Refuse what this host's GPUs could not carry even if they were all empty: waiting would not help."""
    if (why := never_fits(asks, spec.replicas, capacity.sight)) is not None:
        raise InvalidInput(
            f"{spec.label} can never run on this host: it {why}",
            field="resources.gpus",
            hint="Deploy it on a host that has such GPUs (see qd gpus), or ask for less, in [resources] or replicas.",
        )


def body_digest(spec: Spec, model: ModelConfig, launch: Launch) -> str:
    """The digest of everything that shapes a replica; equal digests mean interchangeable replicas."""
    shape = {
        "version": spec.version,
        "env": spec.env,
        "restart": spec.restart,
        "launch": launch_shape(launch),
        "resources": resources_shape(model.resources),
        "user": model.user,
        "writable_root": model.writable_root,
    }
    text = json.dumps(shape, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


ABOUT_LAUNCH = ("facts_path", "own_torch")
"""What is known of a launch and changes nothing about what is launched."""


def launch_shape(launch: Launch) -> dict[str, object]:
    """How a replica is started, as it goes into a body's digest."""
    return {key: value for key, value in dataclasses.asdict(launch).items() if key not in ABOUT_LAUNCH}


LATER_RESOURCES = ("exclusive", "mig", "gpu_model", "gpu_labels")
"""Came after the first release: as long as they are not asked for, digests are as they were without them."""


def resources_shape(asks: Resources) -> dict[str, object]:
    """What is asked for, as it goes into a body's digest."""
    shape = dataclasses.asdict(asks)
    return {key: value for key, value in shape.items() if key not in LATER_RESOURCES or value}


def environment(spec: Spec, model: ModelConfig, launch: Launch) -> dict[str, str]:
    """A replica's environment: the runtime's, then the bundle's, then the deployment's."""
    ours = {"QUARTERDECK_NAME": model.name, "QUARTERDECK_VERSION": model.version}
    if model.resources.cpus is not None:
        ours["QUARTERDECK_CPUS"] = f"{model.resources.cpus:g}"
    return {**launch.env, **model.env, **spec.env, **ours}


def same_image(now: WantedDeployment | None, spec: Spec) -> str | None:
    """The image of the running revision while the version stays: a tag is resolved once, not at each restart."""
    for revision in (now.live, now.target) if now else ():
        if revision is not None and revision.spec.version == spec.version and revision.image is not None:
            return revision.image
    return None


def _numbered(name: str, history: Sequence[Revision], number: int) -> Revision:
    found = next((r for r in history if r.number == number), None)
    if found is None:
        known = ", ".join(str(r.number) for r in history)
        raise NotFound(f"{name} has no revision {number}", field="to", hint=f"It has: {known}.")
    return found


def _no_way_back(name: str, failed: Sequence[Revision]) -> NotFound:
    """That there is nothing to roll back to but what failed."""
    if not failed:
        hint = f"See `qd history {name}` and name one with --to."
        return NotFound(f"{name} has no earlier revision that served", hint=hint)
    number, label = failed[0].number, failed[0].spec.label
    return NotFound(
        f"{name} has no earlier revision that served well: {number} ({label}) was failing when it was replaced",
        hint=f"If you mean that one: qd rollback {name} --to {number}.",
    )


def spec_changes(old: Spec, new: Spec) -> tuple[Change, ...]:
    """The diff of two specs, one line a field; values of secrets are not shown."""
    changes = []
    if old.label != new.label or old.version != new.version:
        changes.append(Change("version", old.label, new.label))
    for field in ("replicas", "handover", "warm", "dwell", "golden", "deadline", "stopped", "restart"):
        before, after = getattr(old, field), getattr(new, field)
        if before != after:
            changes.append(Change(field, _text(before), _text(after)))
    for limit in dataclasses.fields(Limits):
        before, after = getattr(old.limits, limit.name), getattr(new.limits, limit.name)
        if before != after:
            changes.append(Change(f"limits.{limit.name}", _text(before), _text(after)))
    for key in sorted(old.env.keys() | new.env.keys()):
        if old.env.get(key) != new.env.get(key):
            field = f"env.{key}"
            changes.append(Change(field, shown(field, old.env.get(key)), shown(field, new.env.get(key))))
    return tuple(changes)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def warnings(model: ModelConfig, spec: Spec, live: WantedRevision | None, body: str) -> tuple[str, ...]:
    """What somebody should know before saying yes."""
    found = []
    if model.writable_root:
        found.append("the version asks for a writable root file system in its container")
    if model.user is not None:
        found.append(f"the version asks to run as user {model.user}")
    if live is not None and live.body == body and live.spec == spec:
        found.append("this is what runs already; nothing but the history would change")
    if not model.golden and not spec.stopped:
        found.append("the version has no golden requests: only its health is checked before the switch")
    elif not spec.golden and not spec.stopped:
        found.append("golden requests are switched off: only health is checked before the switch")
    return tuple(found)


def command(kind: str, name: str, spec: Spec) -> str:
    """The command line that asks for the same change."""
    match kind:
        case "deploy":
            alias = "" if spec.label.partition(":")[0] == name else f" --as {name}"
            return f"qd deploy {spec.label}{alias}"
        case "scale":
            return f"qd scale {name} {spec.replicas}"
        case "remove":
            return f"qd rm {name}"
        case _:
            return f"qd {kind} {name}"


def preview_steps(draft: Draft) -> tuple[str, ...]:
    """The steps in words, in order."""
    count = f"{draft.spec.replicas} replica{'s' if draft.spec.replicas != 1 else ''}"
    if draft.kind == "remove":
        return ("take the route away", "drain and stop all replicas", "keep history and logs")
    if draft.spec.stopped:
        return ("answer 503 on the endpoint", "drain and stop all replicas")
    if draft.starts_nothing:
        return (f"go to {count} of the running revision",)
    golden = ("golden requests",) if draft.golden and draft.spec.golden else ()
    gate = (f"ready for {draft.spec.dwell:g} s", *golden)
    if draft.choice.handover == "hold":
        old = ("hold new requests", "drain and stop the old replicas", wait_for_memory(draft))
        return ("stage the version", *old, f"start {count}", *gate, "release the requests")
    where = f" on {draft.on}" if draft.on else ""
    return ("stage the version", f"start {count}{where}", *gate, "switch", "drain the old replicas")


def wait_for_memory(draft: Draft) -> str:
    """What a hold waits for between stop and start, in words."""
    if not draft.asks.gpus:
        return "wait until the memory is free"
    what = gib(draft.asks.vram) if draft.asks.vram is not None else "all memory"
    each = " each" if draft.spec.replicas * draft.asks.gpus > 1 else ""
    return f"wait for {what}{each} on {draft.on or 'a GPU'}"


def if_it_fails(draft: Draft) -> str:
    """What a failure of the change would mean."""
    if draft.starts_nothing:
        return "nothing else changes"
    if draft.choice.replaces is None:
        return "the deployment stays without a serving revision and its failure record says why"
    return f"{draft.choice.replaces} " + ("starts again" if draft.choice.handover == "hold" else "goes on serving")
