"""Deploy: which version, under which name, on which hosts, how many, how. The plan follows what is chosen."""

from __future__ import annotations

from textual.app import ComposeResult

from quarterdeck_agent.protocol import DeployRequest, Handover
from quarterdeck_console import config
from quarterdeck_console.errors import ConsoleError
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.dialogs.plan import PlanDialog
from quarterdeck_console.tui.look import deployment, labels, version_ids
from quarterdeck_console.tui.widgets.field import Field

HANDOVERS: tuple[Handover, ...] = ("auto", "overlap", "hold")


class DeployDialog(PlanDialog):
    """Begins with the newest version of what is under the cursor, on its hosts."""

    verb = "deploy"

    def __init__(self, context: Context, fleet: FleetState, targets: tuple[m.Target, ...], version: str | None) -> None:
        super().__init__(context, fleet)
        self._deployed = targets[0].name if targets else ""
        self._hosts = tuple(dict.fromkeys(each.host for each in targets if each.name == self._deployed))
        if not self._hosts and len(context.fleet.hosts) == 1:
            self._hosts = (context.fleet.hosts[0].name,)
        self._targets, self._absent = targets, ""
        self._known = self._labels_first(targets)
        self._version = version or self._newest(targets)

    def _newest(self, targets: tuple[m.Target, ...]) -> str:
        """The newest version of the model, unless that is what runs: then a person has to choose."""
        running = deployment(self.fleet, targets[0]) if targets else None
        if running is None:
            return ""
        model = running.label.partition(":")[0]
        newest = next((label for label in labels(self.fleet) if label.partition(":")[0] == model), "")
        return newest if newest != running.label else ""

    def _labels_first(self, targets: tuple[m.Target, ...]) -> tuple[str, ...]:
        """Labels of the same model first, newest first, what runs already last among them."""
        known = labels(self.fleet)
        running = deployment(self.fleet, targets[0]) if targets else None
        if running is None:
            return known
        model = running.label.partition(":")[0]
        same = [label for label in known if label.partition(":")[0] == model]
        other = [label for label in same if label != running.label]
        return (*other, *(label for label in same if label == running.label), *(x for x in known if x not in same))

    def question(self) -> str:
        version, hosts = (self.value("version"), self.value("hosts")) if self.is_mounted else ("", "")
        return f"Deploy {version or '…'} to {hosts or '…'}"

    def form(self) -> ComposeResult:
        yield Field("version", "version", self._version, self._known, "label:version, or the start of an id")
        yield Field("as", "as", self._deployed, placeholder="the model's name")
        yield Field("hosts", "hosts", " ".join(self._hosts), list(self.context.hosts), "names or globs like gpu-*")
        yield Field("replicas", "replicas", "", [str(n) for n in range(1, 9)], "as it is now", digits=True)
        yield Field("handover", "handover", "", HANDOVERS, "auto: as it fits")
        yield Field("why", "why", "", placeholder="kept in the history")

    def begin(self) -> None:
        """With a version to offer, the answer is next: `y` must not be typed into a field. Shift+tab goes back up."""
        if self._version:
            self.set_focus(self.query_one("#no"))

    def learn(self) -> None:
        """Versions that were pushed meanwhile can be chosen; the plan is asked anew where one was missing."""
        known = self._labels_first(self._targets)
        new = [label for label in known if label not in self._known]
        if known != self._known:
            self._known = known
            self.query_one("#version-field", Field).set_options(known)
        hosts = self._chosen_hosts()
        if isinstance(hosts, tuple) and self._missing(self.value("version"), hosts) != self._absent:
            self.renew()
        elif new:
            self.query_one("#version-field", Field).show_hint(f"new: {new[0]}")

    def wish(self) -> m.Wish | str:
        version, name = self.value("version"), self.value("as")
        if not version:
            return "which version? up and down go through those that are known"
        name = name or version.partition(":")[0]
        if not name or (":" not in version and not self.value("as")):
            return "under which name?"
        hosts = self._chosen_hosts()
        if isinstance(hosts, str):
            return hosts
        handover, replicas = self.value("handover"), self.value("replicas")
        if handover and handover not in HANDOVERS:
            return f"the handover is one of {', '.join(HANDOVERS)}"
        self._absent = self._missing(version, hosts)
        hint = f"not on {self._absent}: push it there first" if self._absent else ""
        self.query_one("#version-field", Field).show_hint(hint)
        request = DeployRequest(
            version=version,
            replicas=int(replicas) if replicas else None,
            handover=next((each for each in HANDOVERS if each == handover), None),
            why=self.value("why"),
        )
        return m.Wish("deploy", tuple(m.Target(host, name) for host in hosts), request)

    def _chosen_hosts(self) -> tuple[str, ...] | str:
        patterns = tuple(self.value("hosts").replace(",", " ").split())
        if not patterns:
            return "on which hosts?"
        try:
            return tuple(host.name for host in config.choose(self.context.fleet, patterns))
        except ConsoleError as error:
            return error.detail

    def _missing(self, version: str, hosts: tuple[str, ...]) -> str:
        """The hosts that are heard from and do not have this version."""
        without = []
        for host in hosts:
            state = self.fleet.hosts.get(host)
            if state is not None and state.status is not None and version_ids(state, version) == ():
                without.append(host)
        return ", ".join(without)
