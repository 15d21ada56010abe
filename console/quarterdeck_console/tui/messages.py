"""What screens, widgets and dialogs say: every message that is posted up, and every answer that comes down.

`Ask…` and `Open…` go up to the app, `Want…` go up and name who wants the answer, `…Came` come down to that one. Values
only: no message holds a client, a task or a function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from textual.message import Message

from quarterdeck_agent.protocol import (
    ChangeRequest,
    DeploymentDetail,
    DeployRequest,
    LogLine,
    Preview,
    RollbackRequest,
    ScaleRequest,
    Series,
    Version,
)
from quarterdeck_console.errors import ConsoleError
from quarterdeck_console.state import FleetState

if TYPE_CHECKING:
    from textual.message_pump import MessagePump

Kind = Literal["deploy", "rollback", "scale", "restart", "stop", "remove"]
AnyRequest = DeployRequest | RollbackRequest | ScaleRequest | ChangeRequest
Place = Literal["fleet", "versions", "operations", "gpus"]
Form = Literal["yaml", "json"]


class Target(NamedTuple):
    """One deployment on one host."""

    host: str
    name: str


@dataclass(frozen=True, slots=True)
class Wish:
    """A change as a person wants it: of one kind, with one request, for each target."""

    kind: Kind
    targets: tuple[Target, ...]
    request: AnyRequest
    generations: tuple[int | None, ...] = ()
    """For each target what its plan was made for; a change by somebody else since then is refused by the host."""


# --- going somewhere -------------------------------------------------------------------------------------------


@dataclass
class OpenPlace(Message):
    """Show one of the places that are always there, and tell its screen something."""

    place: Place
    then: Message | None = None


@dataclass
class StartPush(Message):
    """Told to the versions' screen: ask what to push; `folder` is typed already."""

    folder: str = ""


@dataclass
class StartCompare(Message):
    """Told to the versions' screen: compare these labels, or without any what is selected."""

    labels: tuple[str, ...] = ()


@dataclass
class OpenDeployment(Message):
    """Show one deployment in full."""

    target: Target


@dataclass
class OpenLogs(Message):
    """Show the logs of these deployments, merged."""

    targets: tuple[Target, ...]
    revision: int | None = None
    previous: bool = False


@dataclass
class OpenText(Message):
    """Show these deployments as YAML, or as the JSON that `--json` prints."""

    targets: tuple[Target, ...]
    form: Form


@dataclass
class OpenItems(Message):
    """Show things of other kinds so: each by its host, and its uuid or id there."""

    kind: Literal["gpus", "versions", "operations"]
    keys: tuple[tuple[str, str], ...]
    form: Form


@dataclass
class OpenHost(Message):
    """Show the fleet narrowed to one host."""

    host: str


@dataclass
class SetTheme(Message):
    """Change the colours."""

    theme: str


@dataclass
class SaveScreen(Message):
    """Write the screen as SVG into the present folder."""


@dataclass
class Typed(Message):
    """Chosen in the command line `dialog`, which closes: do this."""

    dialog: MessagePump
    message: Message


@dataclass
class OpenHelp(Message):
    """Show the keys of the present screen."""


@dataclass
class GoBack(Message):
    """Leave the present screen."""


@dataclass
class ChangeRefresh(Message):
    """Have the figures come more often (-1) or less often (+1)."""

    direction: int


@dataclass
class Quit(Message):
    """End the console."""


# --- asking for a change: each opens a dialog, none changes anything by itself ------------------------------------


@dataclass
class Ask(Message):
    """A change is asked for; its dialog shows the plan first."""

    targets: tuple[Target, ...]


@dataclass
class AskDeploy(Ask):
    """Deploy a version; without targets the dialog asks for hosts too."""

    version: str | None = None


@dataclass
class AskRollback(Ask):
    """Serve an earlier revision again: `to`, or the last one that served."""

    to: int | None = None


@dataclass
class AskScale(Ask):
    """Run another number of replicas."""

    replicas: int | None = None


@dataclass
class AskRestart(Ask):
    """Start the replicas anew."""


@dataclass
class AskStop(Ask):
    """Stop serving, keep everything."""


@dataclass
class AskRemove(Ask):
    """Remove a deployment."""


# --- wanting something that the fleet's events do not carry -------------------------------------------------------


@dataclass
class Want(Message):
    """Something is wanted from hosts; the answer is posted to `asker`."""

    asker: MessagePump


@dataclass
class WantDetail(Want):
    """One deployment with its revisions and gauges: `DetailCame`."""

    target: Target


@dataclass
class DetailCame(Message):
    """A deployment in full, or why not."""

    target: Target
    detail: DeploymentDetail | None = None
    error: ConsoleError | None = None


@dataclass
class WantSeries(Want):
    """One gauge since a time, in about so many points, see `GET /v1/series`: `SeriesCame`."""

    host: str
    name: str
    key: str
    since: datetime | None = None
    points: int | None = None


@dataclass
class SeriesCame(Message):
    """The points of a gauge since the time that was asked for, or why not."""

    host: str
    name: str
    key: str
    since: datetime | None = None
    series: Series | None = None
    error: ConsoleError | None = None


@dataclass
class WantPreviews(Want):
    """What a wish would do on each of its targets: `PreviewsCame`."""

    wish: Wish


@dataclass
class PreviewsCame(Message):
    """For each target of the wish, in its order, a plan or why there is none."""

    wish: Wish
    previews: tuple[Preview | ConsoleError, ...]


@dataclass(frozen=True, slots=True)
class LogWish:
    """Which lines of which deployments: the parameters of `GET /v1/deployments/{name}/logs`."""

    targets: tuple[Target, ...]
    since: str | None = None
    tail: int | None = None
    revision: int | None = None
    replica: str | None = None
    previous: bool = False
    follow: bool = True


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of one target, or what happened to its stream: `note` is to be drawn across, `error` is its end.

    `cut` is set on a note that says that the stream is cut, until the next line.
    """

    target: Target
    line: LogLine | None = None
    note: str = ""
    error: ConsoleError | None = None
    cut: bool = False


@dataclass
class WantLogs(Want):
    """Lines from now on, as `LogsCame`, until `EndLogs` or until the asker is gone. Anew replaces the stream before."""

    wish: LogWish


@dataclass
class EndLogs(Want):
    """No more lines."""


@dataclass
class LogsCame(Message):
    """A batch of lines of a wish, four times a second at most; `ended` when its streams are over."""

    entries: Sequence[LogEntry]
    ended: bool = False
    wish: LogWish | None = None


@dataclass
class WantPush(Want):
    """Send the bundle in `folder` to these hosts: `PushCame` again and again."""

    hosts: tuple[str, ...]
    folder: str
    allow_pickle: bool = False


@dataclass
class EndPush(Want):
    """No more of this asker's pushes: what a host has got by then stays there for the next time."""


@dataclass
class PushCame(Message):
    """How far a push is on one host (`None` while hashing); `version` or `error` end it there."""

    host: str | None
    stage: str
    done: int = 0
    total: int = 0
    label: str = ""
    detail: str = ""
    version: Version | None = None
    error: ConsoleError | None = None


@dataclass
class WantRemoveVersion(Want):
    """A host should forget a version: `VersionRemoved`."""

    host: str
    id: str
    label: str


@dataclass
class VersionRemoved(Message):
    """A version is gone from a host, or why not."""

    host: str
    label: str
    error: ConsoleError | None = None


# --- news --------------------------------------------------------------------------------------------------------


@dataclass
class FleetChanged(Message):
    """The fleet as it is now, and the hosts of which anything is new; many events make one of these."""

    fleet: FleetState
    hosts: frozenset[str]


@dataclass
class FleetCame(Message, bubble=False):
    """For a dialog: the fleet as it is now, under it."""

    fleet: FleetState


@dataclass
class Told(Message):
    """One line for the event line: how a change of ours went, or what could not be done."""

    text: str
    bad: bool = False
