"""Settings: where they come from, what is refused, and the folders that are prepared."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent import settings
from quarterdeck_agent.errors import SettingsError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_root_keeps_to_var_lib_and_run() -> None:
    found = settings.load({}, root=True)
    assert found.data_folder == Path("/var/lib/quarterdeck")
    assert found.socket == Path("/run/quarterdeck/agent.sock")
    assert found.token_file == Path("/run/quarterdeck/token")


def test_a_user_gets_the_xdg_folders() -> None:
    found = settings.load({"HOME": "/home/ada", "XDG_RUNTIME_DIR": "/run/user/7"}, root=False)
    assert found.data_folder == Path("/home/ada/.local/share/quarterdeck")
    assert found.socket == Path("/run/user/7/quarterdeck/agent.sock")


def test_without_a_runtime_folder_the_state_folder_takes_its_place() -> None:
    found = settings.load({"HOME": "/home/ada", "XDG_STATE_HOME": "relative/is/ignored"}, root=False)
    assert found.socket == Path("/home/ada/.local/state/quarterdeck/agent.sock")


def test_an_override_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    config = written(tmp_path, 'engine = "docker"\nmin_free = "2GiB"\n[gateway]\nport = 9000\nhost = "::1"\n')
    found = settings.load(
        {"QUARTERDECK_GATEWAY_PORT": "9001", "QUARTERDECK_ENGINE": "simulated"},
        config=config,
        overrides={"engine": "process", "docker_url": None},
    )
    assert (found.engine, found.gateway_port, found.gateway_host, found.min_free) == ("process", 9001, "::1", 2 * 2**30)
    assert found.docker_url == "unix:///var/run/docker.sock"


def test_gpus_get_labels_by_uuid_or_index_from_the_file_or_the_environment(tmp_path: Path) -> None:
    config = written(tmp_path, '[gpus.labels]\n0 = ["big", "rack-2"]\n"GPU-8f2b-1" = []\n')
    assert dict(settings.load({}, config=config).gpu_labels) == {"0": ("big", "rack-2"), "GPU-8f2b-1": ()}
    config = written(tmp_path, '[gpus]\nlabels = {"MIG-8f2b" = ["small"]}\n')
    assert settings.load({}, config=config).gpu_labels == (("MIG-8f2b", ("small",)),)
    said = settings.load({"QUARTERDECK_GPU_LABELS": "0=big, rack-2; GPU-8f2b-1=small"}, root=True)
    assert dict(said.gpu_labels) == {"0": ("big", "rack-2"), "GPU-8f2b-1": ("small",)}
    assert settings.load({}, root=True).gpu_labels == ()


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("nonsense", None, "not valid TOML"),
        ("engines = 'docker'", "engines", "no setting called"),
        ("[gateway]\nport = 'high'", "gateway.port", "whole number from 1 to 65535"),
        ("[gateway]\nport = 70000", "gateway.port", "whole number"),
        ("[gateway]\nport = true", "gateway.port", "whole number"),
        ("gateway = 5", "gateway", "no setting called"),
        ("engine = 'podman'", "engine", "one of auto, docker"),
        ("engine = ['docker']", "engine", "one of auto, docker"),
        ("data_folder = 'relative'", "data_folder", "absolute path"),
        ('data_folder = "/a\\u0000b"', "data_folder", "line of text"),
        ("min_free = '5 parsecs'", "min_free", "a size such as"),
        ("min_free = -1", "min_free", "a size such as"),
        ("min_free = true", "min_free", "a size such as"),
        ("min_free = 1.5", "min_free", "a size such as"),
        ("[gateway]\nsupervised = 1", "gateway.supervised", "true or false"),
        ("[gpus.labels]\nfirst = ['big']", "gpus.labels", "by uuid or index"),
        ("[gpus.labels]\n0 = 'big'", "gpus.labels", "a list of words"),
        ("[gpus.labels]\n0 = ['big one']", "gpus.labels", "a list of words"),
        ("[gpus]\nlabels = 0", "gpus.labels", "by uuid or index"),
        ("[probe]\ninterval = 0", "probe.interval", "seconds from"),
        ("[history]\ndays = 0", "history.days", "whole number from 1"),
        ("[history]\nsize = 'much'", "history.size", "a size such as"),
        ("[probe]\ninterval = nan", "probe.interval", "seconds from"),
    ],
)
def test_a_wrong_setting_is_refused_by_file_and_key(tmp_path: Path, text: str, key: str | None, says: str) -> None:
    config = written(tmp_path, text)
    with pytest.raises(SettingsError) as refused:
        settings.load({}, config=config)
    assert str(config) in refused.value.detail
    assert says in refused.value.detail
    assert refused.value.field == key
    assert refused.value.hint


def test_a_wrong_variable_is_refused_by_its_name() -> None:
    with pytest.raises(SettingsError, match="QUARTERDECK_GATEWAY_PORT"):
        settings.load({"QUARTERDECK_GATEWAY_PORT": "lots"}, root=True)


def test_a_named_settings_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no settings file"):
        settings.load({"QUARTERDECK_CONFIG": str(tmp_path / "none.toml")})


def test_a_socket_path_the_kernel_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="107"):
        settings.load({}, overrides={"run_folder": tmp_path / ("x" * 100)})


def place(tmp_path: Path, **more: Any) -> settings.Settings:
    return settings.load({}, overrides={"data_folder": tmp_path / "data", "run_folder": tmp_path / "run", **more})


def test_preparing_makes_private_folders_an_instance_and_a_token_that_stay(tmp_path: Path) -> None:
    first = settings.prepare(place(tmp_path))
    first.lock.close()
    second = settings.prepare(place(tmp_path))
    second.lock.close()
    assert (first.instance, first.token) == (second.instance, second.token)
    assert first.token.startswith("qd_")
    assert len(first.token) == 46
    assert first.token not in repr(first)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [*tmp_path.iterdir(), *tmp_path.glob("*/*")]}
    assert modes == {"data": 0o700, "run": 0o700, "instance": 0o600, "lock": 0o600, "token": 0o600}


def test_a_second_agent_on_one_data_folder_is_refused(tmp_path: Path) -> None:
    with settings.prepare(place(tmp_path)).lock, pytest.raises(SettingsError, match="Another agent runs"):
        settings.prepare(place(tmp_path, run_folder=tmp_path / "run2"))


@pytest.mark.parametrize("name", ["data", "run"])
def test_a_folder_open_to_others_is_refused_with_the_mend(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / name).chmod(0o750)
    with pytest.raises(SettingsError, match="open to others") as refused:
        settings.prepare(place(tmp_path))
    assert refused.value.hint == f"Run `chmod 700 {tmp_path / name}`."


def test_a_token_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    settings.prepare(place(tmp_path)).lock.close()
    (tmp_path / "run" / "token").chmod(0o644)
    with pytest.raises(SettingsError, match="agent's user alone"):
        settings.prepare(place(tmp_path))


def test_a_link_in_place_of_the_token_is_refused(tmp_path: Path) -> None:
    settings.prepare(place(tmp_path)).lock.close()
    (tmp_path / "run" / "token").unlink()
    (tmp_path / "run" / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="cannot be opened"):
        settings.prepare(place(tmp_path))
    assert not (tmp_path / "elsewhere").exists()


def test_a_damaged_instance_file_is_refused_without_showing_it(tmp_path: Path) -> None:
    settings.prepare(place(tmp_path)).lock.close()
    (tmp_path / "data" / "instance").write_text("half")
    with pytest.raises(SettingsError, match="does not hold what the agent wrote") as refused:
        settings.prepare(place(tmp_path))
    assert "half" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    os.chown(tmp_path / "data", 12345, 12345)
    with pytest.raises(SettingsError, match="belongs to user 12345"):
        settings.prepare(place(tmp_path))
