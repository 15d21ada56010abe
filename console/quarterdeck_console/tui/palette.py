"""Pure: what is typed after `:` (or ctrl+p), as the things it may mean: verbs, deployments, hosts, places.

A hit either is a message that can be posted, or more text for the line (`fill`) because something is still missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from textual.message import Message

from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import look
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.filtering import fuzzy

MOST = 60
"""Hits that are offered."""

THEMES = (
    "quarterdeck",
    "quarterdeck-light",
    "ansi-dark",
    "ansi-light",
    "textual-dark",
    "nord",
    "gruvbox",
)


@dataclass(frozen=True, slots=True)
class Hit:
    """One line of the palette."""

    title: str
    help: str
    message: Message | None = None
    fill: str = ""


@dataclass(frozen=True, slots=True)
class Verb:
    """A word that is about deployments. `make` turns targets and the rest of what was typed into a message."""

    word: str
    help: str
    make: Callable[[tuple[m.Target, ...], str], Message]
    changes: bool = False


def _number(rest: str) -> int | None:
    return int(rest) if rest.isdecimal() else None


VERBS = (
    Verb("describe", "everything about it", lambda targets, _: m.OpenDeployment(targets[0])),
    Verb("logs", "its replicas' output", lambda targets, _: m.OpenLogs(targets)),
    Verb("yaml", "as YAML", lambda targets, _: m.OpenText(targets, "yaml")),
    Verb("json", "as --json prints it", lambda targets, _: m.OpenText(targets, "json")),
    Verb("rollback", "serve an earlier revision again", lambda t, rest: m.AskRollback(t, _number(rest)), True),
    Verb("scale", "run another number of replicas", lambda t, rest: m.AskScale(t, _number(rest)), True),
    Verb("restart", "start the replicas anew", lambda targets, _: m.AskRestart(targets), True),
    Verb("stop", "stop serving, keep everything", lambda targets, _: m.AskStop(targets), True),
    Verb("rm", "remove it", lambda targets, _: m.AskRemove(targets), True),
)
PLACES: tuple[tuple[m.Place, str], ...] = (
    ("fleet", "every deployment on every host"), ("versions", "what is staged where"),
    ("operations", "what was changed, by whom"), ("gpus", "every GPU"),
)  # fmt: skip


def hits(typed: str, fleet: FleetState, here: tuple[m.Target, ...], read_only: bool) -> list[Hit]:
    """What the words may mean, the likeliest first. `here` is what is under the cursor: a bare verb is about it."""
    word, space, rest = typed.strip().lstrip(":").partition(" ")
    rest = rest.strip()
    found: list[Hit] = []
    for verb in VERBS:
        if not (verb.changes and read_only):
            found += _of_verb(verb, word, space, rest, fleet, here)
    if not read_only:
        found += _deploys(word, space, rest, fleet, here)
        found += _pushes(word, rest)
    found += _compares(word, space, rest, fleet)
    if not space:
        found += _plain(word, fleet)
    ranked = sorted(found, key=lambda hit: _rank(typed.strip().lstrip(":").casefold(), hit.title.casefold()))
    return ranked[:MOST]


def _of_verb(
    verb: Verb, word: str, space: str, rest: str, fleet: FleetState, here: tuple[m.Target, ...]
) -> Iterator[Hit]:
    if space and verb.word != word:
        return
    if not space and not _matches(word, verb.word):
        return
    if not space:
        if here:
            names = ", ".join(f"{each.name} on {each.host}" for each in here[:3]) + (" …" if len(here) > 3 else "")
            yield Hit(verb.word, f"{verb.help}: {names}", verb.make(here, ""))
        else:
            yield Hit(verb.word, verb.help, fill=f"{verb.word} ")
        return
    name, _, more = rest.partition(" ")
    for target in look.targets(fleet):
        if _matches(name, f"{target.name}@{target.host}"):
            title = f"{verb.word} {target.name}@{target.host}" + (f" {more}" if more else "")
            yield Hit(title, verb.help, verb.make((target,), more.strip()))


def _deploys(word: str, space: str, rest: str, fleet: FleetState, here: tuple[m.Target, ...]) -> Iterator[Hit]:
    if not space:
        if _matches(word, "deploy"):
            yield Hit("deploy", "serve a version", m.AskDeploy(here))
        return
    if word == "deploy":
        for label in look.labels(fleet):
            if _matches(rest, label):
                yield Hit(f"deploy {label}", "serve this version", m.AskDeploy(_served_by(label, fleet, here), label))


def _pushes(word: str, rest: str) -> Iterator[Hit]:
    if rest and word == "push":
        yield Hit(f"push {rest}", "send this bundle to hosts", m.OpenPlace("versions", m.StartPush(rest)))
    elif not rest and _matches(word, "push"):
        yield Hit("push", "send a bundle to hosts", m.OpenPlace("versions", m.StartPush()))


def _compares(word: str, space: str, rest: str, fleet: FleetState) -> Iterator[Hit]:
    """`compare A B` is typed in two steps: the first label fills the line, the second compares."""
    if not space:
        if _matches(word, "compare"):
            yield Hit("compare", "the versions that are selected", m.OpenPlace("versions", m.StartCompare()))
    elif word == "compare":
        labels = look.labels(fleet)
        first, _, second = rest.partition(" ")
        if first in labels:
            for label in labels:
                if label != first and _matches(second.strip(), label):
                    to = m.OpenPlace("versions", m.StartCompare((first, label)))
                    yield Hit(f"compare {first} {label}", "what differs between them", to)
        else:
            for label in labels:
                if _matches(first, label):
                    yield Hit(f"compare {label}", "with which?", fill=f"compare {label} ")


def _served_by(label: str, fleet: FleetState, here: tuple[m.Target, ...]) -> tuple[m.Target, ...]:
    """Where a version of this model runs already: that is where a newer one is likely wanted."""
    model = label.partition(":")[0]
    of_model = [target for target in here if target.name == model]
    return tuple(of_model) or tuple(target for target in look.targets(fleet) if target.name == model)


def _plain(word: str, fleet: FleetState) -> Iterator[Hit]:
    """Places, hosts, deployments, and what the console itself can do."""
    for place, help in PLACES:
        if _matches(word, place):
            yield Hit(place, help, m.OpenPlace(place))
    for host in fleet.hosts:
        if word and _matches(word, host):
            yield Hit(host, "only this host", m.OpenHost(host))
    if word:
        for target in look.targets(fleet):
            if _matches(word, f"{target.name}@{target.host}"):
                yield Hit(f"{target.name}@{target.host}", "describe", m.OpenDeployment(target))
    own: tuple[tuple[str, str, Message], ...] = (
        ("help", "the keys of this view", m.OpenHelp()), ("screenshot", "write the screen as SVG", m.SaveScreen()),
        ("quit", "end the console", m.Quit()),
        *((f"theme {name}", "change the colours", m.SetTheme(name)) for name in THEMES if word.startswith("t")),
    )  # fmt: skip
    for title, help, message in own:
        if _matches(word, title):
            yield Hit(title, help, message)


def _matches(typed: str, text: str) -> bool:
    return fuzzy(typed.casefold(), text.casefold())


def _rank(typed: str, title: str) -> tuple[int, int]:
    if title == typed:
        return 0, 0
    if title.startswith(typed):
        return 1, 0
    return (2, title.index(typed)) if typed in title else (3, len(title))
