"""`qd` in a real terminal over a real agent: a version is deployed and rolled back from the keyboard alone.

tmux is the terminal: it takes the keys and tells what stands on the screen. The API tells what really happened.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.bundles import deployed, push
from tests.end_to_end.rig import ROOT, Agent, until

pytestmark = [
    pytest.mark.envoy,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="LEFT OUT: no tmux, the terminal of the console's test"),
]

COLUMNS, LINES = 120, 36
DIALOG = "[ No ]"


@dataclass(frozen=True)
class Tmux:
    """A tmux server of its own with one window, told apart from all others by its socket's name."""

    name: str

    def run(self, *words: str, **environment: str) -> str:
        done = subprocess.run(
            ["tmux", "-u", "-L", self.name, "-f", "/dev/null", *words],
            cwd=ROOT,
            env=environment or None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert done.returncode == 0, f"tmux {words[0]}: {done.stderr}"
        return done.stdout

    def press(self, *keys: str) -> None:
        """One after the other, as a person does."""
        for key in keys:
            self.run("send-keys", key)

    @property
    def screen(self) -> str:
        """What stands on the screen."""
        return self.run("capture-pane", "-p")

    @property
    def modes(self) -> dict[str, str]:
        """What the program has done to the terminal: the other screen, the mouse, the cursor."""
        names = ("alternate_on", "mouse_any_flag", "cursor_flag")
        told = self.run("display-message", "-p", " ".join(f"#{{{name}}}" for name in names)).split()
        return dict(zip(names, told, strict=True))

    def shows(self, *texts: str, deadline: float = 30.0) -> None:
        """Wait until all of these stand on the screen at once."""
        self._until(lambda screen: all(text in screen for text in texts), f"shows {texts}", deadline)

    def closes(self, text: str) -> None:
        """Wait until this does not stand on the screen any more."""
        self._until(lambda screen: text not in screen, f"{text!r} goes", 30.0)

    def _until(self, condition: Callable[[str], bool], what: str, deadline: float) -> None:
        try:
            until(lambda: condition(self.screen), what, deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.screen}") from None


@pytest.fixture
def terminal(host: Agent, tmp_path: Path) -> Iterator[Tmux]:
    """`qd` over the agent `host`, in a terminal that stays when it has ended."""
    made = Tmux(f"qd-test-{uuid.uuid4().hex}")
    program = f"{shlex.quote(sys.executable)} -m quarterdeck_console"
    kept = {key: value for key, value in host.environment().items() if key not in ("TMUX", "NO_COLOR", "COLORTERM")}
    own = {
        "QUARTERDECK_HOST": f"unix://{host.socket}",
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "LC_ALL": "C.UTF-8",
        "SHELL": "/bin/sh",
    }
    window = ("new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES))
    try:
        made.run(*window, f"{program}; echo ended with $?; stty -a; exec cat", **kept | own)
        yield made
    finally:
        subprocess.run(["tmux", "-L", made.name, "kill-server"], capture_output=True, check=False, timeout=20)
        (Path("/tmp") / f"tmux-{os.getuid()}" / made.name).unlink(missing_ok=True)  # the server leaves its socket


def numbered(host: Agent) -> list[tuple[int, str, str, int | None]]:
    """Every revision there is, newest first."""
    return [
        (each["number"], each["spec"]["label"], each["outcome"], each["rollback_of"]) for each in host.revisions("toy")
    ]


def changes(host: Agent) -> list[str]:
    """The kinds of what was changed, in order, pushes left out."""
    status, answer = host.api("GET", "/v1/operations")
    assert status == 200, answer
    kinds = [each["kind"] for each in (answer["items"] if isinstance(answer, dict) else answer)]
    return [kind for kind in reversed(kinds) if kind != "push"]


def test_a_version_is_deployed_and_rolled_back_from_the_keyboard(host: Agent, terminal: Tmux, tmp_path: Path) -> None:
    deployed(host, tmp_path, "1")
    push(host, tmp_path, "2")
    host.until_settled("toy", 1)
    terminal.shows("toy:1", "● serving")
    assert terminal.modes["alternate_on"] == "1"
    terminal.press("2")
    terminal.shows("x compare", "toy:1", "toy:2")
    terminal.press("1")
    terminal.shows("DEPLOYMENT", "● serving")

    _enter_leaves_the_deploy_dialog(terminal)
    assert numbered(host) == [(1, "toy:1", "serving", None)]
    _deploy_the_second(terminal)
    host.until_settled("toy", 2)
    terminal.shows("▌local ●    toy            2            2 ● serving")

    terminal.press("R")
    terminal.shows("Roll back toy on local", "toy:2 → toy:1", "y roll back")
    terminal.press("Enter")
    terminal.closes(DIALOG)
    assert [number for number, *_ in numbered(host)] == [2, 1]
    terminal.press("R")
    terminal.shows("Roll back toy on local", "toy:2 → toy:1", "y roll back")
    terminal.press("y")
    terminal.closes(DIALOG)
    host.until_settled("toy", 3)
    terminal.shows("▌local ●    toy            1            3 ● serving")

    assert numbered(host) == [
        (3, "toy:1", "serving", 1),
        (2, "toy:2", "replaced", None),
        (1, "toy:1", "replaced", None),
    ]
    assert changes(host) == ["deploy", "deploy", "rollback"]
    assert host.call("toy", {"x": 1})[1]["version"] == "1"
    _quit_restores_the_terminal(terminal)


def _enter_leaves_the_deploy_dialog(terminal: Tmux) -> None:
    """With the plan there and `y` offered, Enter says No."""
    terminal.press("D")
    terminal.shows("Deploy toy:2 to local", "toy:1 → toy:2", "y deploy", DIALOG)
    terminal.press("Enter")
    terminal.closes(DIALOG)


def _deploy_the_second(terminal: Tmux) -> None:
    """The newest version is offered with its plan, and `y` does it."""
    terminal.press("D")
    terminal.shows("Deploy toy:2 to local", "toy:1 → toy:2", "qd deploy toy:2 --host local", "y deploy")
    terminal.press("y")
    terminal.closes(DIALOG)


def _quit_restores_the_terminal(terminal: Tmux) -> None:
    terminal.press("q")
    terminal.shows("ended with 0", "icanon")
    assert terminal.modes == {"alternate_on": "0", "mouse_any_flag": "0", "cursor_flag": "1"}
    words = terminal.screen.replace(";", " ").split()
    assert {"icanon", "echo", "isig", "icrnl"} <= set(words), "the terminal takes lines again, and shows them"
