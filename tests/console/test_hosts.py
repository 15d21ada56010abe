"""The fleet file: where it is, what it may hold, and changing it without losing what a person wrote."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from quarterdeck_console import config
from quarterdeck_console.config import Host
from quarterdeck_console.errors import NotFound, Usage
from tests.console.running import qd

WRITTEN = """# my machines

[hosts.box]   # under the desk
url = "unix:///run/quarterdeck/agent.sock"

# the good one
[hosts."gpu.1"]
url = "unix:///srv/qd/agent.sock"
protected = true
colour = "red"
"""


def test_adding_and_removing_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(WRITTEN)
    config.add(path, Host("new", "unix:///x.sock", token_file="/t", protected=True, colour="blue"))
    assert path.read_text().startswith(WRITTEN)
    hosts = config.read(path)
    assert hosts is not None
    assert hosts[2] == Host("new", "unix:///x.sock", "/t", True, "blue")
    config.remove(path, "new")
    assert path.read_text().strip() == WRITTEN.strip()
    config.remove(path, "gpu.1")
    assert "# my machines" in path.read_text()
    assert [host.name for host in config.read(path) or ()] == ["box"]


def test_the_verbs_change_the_file_and_make_it_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "fleet.toml"
    assert qd(path, "hosts", "add", "box", "unix:///x.sock", "--protected").code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = qd(path, "hosts", "add", "box", "unix:///y.sock", "--json")
    assert (again.code, again.json["error"]["code"]) == (2, "usage")
    replaced = qd(path, "hosts", "add", "box", "unix:///y.sock", "--replace", "--json")
    assert replaced.json["item"]["url"] == "unix:///y.sock"
    assert qd(path, "hosts", "remove", "box").code == 0
    assert qd(path, "hosts", "remove", "box").code == 3
    assert qd(path, "hosts").code == 2, "an empty fleet file knows no host"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts = 3", "must be a table"),
        ("[host.box]\nurl = 'unix:///x'", "unknown key 'host'"),
        ("[hosts.box]\nurl = 'unix:///x'\nprotcted = true", "unknown key 'protcted'"),
        ("[hosts.box]\nurl = 'http://x'", "must look like unix:///"),
        ("[hosts.box]\nurl = 'unix:///x'\nprotected = 'yes'", "true or false"),
        ("[hosts.box]\nurl = 'unix:///x'\ncolour = 'plaid'", "must be one of"),
        ("[hosts.Box]\nurl = 'unix:///x'", "cannot name a host"),
        ("[hosts.box", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(Usage, match=said) as raised:
        config.load({"QUARTERDECK_FLEET": str(path)}, 0)
    assert str(path) in raised.value.detail


@pytest.mark.parametrize(
    ("environ", "uid", "socket"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 0, "/run/quarterdeck/agent.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/quarterdeck/agent.sock"),
        ({"HOME": "/home/ada"}, 7, "/home/ada/.local/state/quarterdeck/agent.sock"),
        ({"XDG_STATE_HOME": "/s", "HOME": "/home/ada"}, 7, "/s/quarterdeck/agent.sock"),
        ({"QUARTERDECK_RUN_FOLDER": "/r"}, 7, "/r/agent.sock"),
        ({"QUARTERDECK_SOCKET": "/q.sock", "QUARTERDECK_RUN_FOLDER": "/r"}, 0, "/q.sock"),
    ],
)
def test_without_a_file_it_is_this_machines_agent(
    environ: dict[str, str], uid: int, socket: str, tmp_path: Path
) -> None:
    fleet = config.load({**environ, "QUARTERDECK_FLEET": str(tmp_path / "none.toml")}, uid)
    assert fleet.path is None
    assert [(host.name, str(host.socket)) for host in fleet.hosts] == [("local", socket)]
    assert fleet.hosts[0].token_path == Path(socket).parent / "token"


def test_the_console_looks_where_the_agents_settings_put_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = pytest.importorskip("quarterdeck_agent.settings")
    for environ in ({"QUARTERDECK_RUN_FOLDER": "/tmp/qd-r"}, {"XDG_RUNTIME_DIR": "/run/user/7", "HOME": "/home/ada"}):
        theirs = settings.load(environ)
        assert config.default_socket(environ, _euid()) == theirs.socket


def _euid() -> int:
    import os

    return os.geteuid()


def test_hosts_are_chosen_in_the_files_order() -> None:
    fleet = config.Fleet(tuple(Host(name, f"unix:///{name}") for name in ("gpu-2", "box", "gpu-1")))
    assert [host.name for host in config.choose(fleet, ("gpu-*", "gpu-1"))] == ["gpu-2", "gpu-1"]
    with pytest.raises(NotFound):
        config.choose(fleet, ("gpu-*", "nope"))
