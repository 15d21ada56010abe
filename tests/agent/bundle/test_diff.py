"""What a preview shows of the difference between two versions."""

from __future__ import annotations

from datetime import UTC, datetime

from quarterdeck_agent.bundle import HIDDEN, ModelConfig, diff, is_secret, parse, public_version
from quarterdeck_agent.protocol import Change, ManifestFile, Version


def test_changed_fields_and_files_are_shown_and_nothing_else() -> None:
    old = parse({"name": "x", "version": "1", "runtime": "python", "settings": {"batch": 1, "port": 1}})
    new = parse({"name": "x", "version": "2", "runtime": "python", "settings": {"batch": 2}, "resources": {"gpus": 1}})
    files = [ManifestFile("w", 3, "a" * 64)], [ManifestFile("w", 4, "b" * 64)]
    assert diff(old, new, *files) == (
        Change("files.w", "aaaaaaaaaaaa (3 bytes)", "bbbbbbbbbbbb (4 bytes)"),
        Change("resources.gpus", "0", "1"),
        Change("settings.batch", "1", "2"),
        Change("settings.port", "1", None),
        Change("version", "x:1", "x:2"),
    )


def test_sizes_are_shown_in_the_largest_unit_that_tells_them_exactly() -> None:
    def asking(vram: str) -> ModelConfig:
        resources = {"gpus": 1, "vram": vram, "memory": "1536MiB"}
        return parse({"name": "x", "version": "1", "runtime": "python", "resources": resources})

    assert diff(asking("40GiB"), asking("64GB")) == (Change("resources.vram", "40 GiB", "62500000 KiB"),)
    assert Change("resources.memory", None, "1536 MiB") in diff(None, asking("1GiB"))


def test_no_secret_is_shown_on_either_side() -> None:
    env = {"HF_TOKEN": "s3cret", "MAX_TOKENS": "5", "DB": "postgres://u:s3cret@host/db"}
    config = {"name": "x", "version": "1", "runtime": "python", "env": env}
    changes = diff(parse(config), parse(config | {"env": {"HF_TOKEN": "s3cret2", "DB": "s3", "apiKey": "s3cret"}}))
    assert Change("env.HF_TOKEN", HIDDEN, HIDDEN) in changes
    assert Change("env.MAX_TOKENS", "5", None) in changes
    assert "s3cret" not in repr(changes)


def test_names_of_secrets_are_told_from_names_of_figures() -> None:
    assert all(
        map(
            is_secret,
            ["API_KEY", "apiKey", "env.PASSWORD", "AWS_SECRET_ACCESS_KEY", "db-password", "HFTOKEN", "DB_PASS"],
        )
    )
    assert not any(map(is_secret, ["MAX_TOKENS", "tokenizer", "KEYBOARD", "files.private/key", "secretary", "BYPASS"]))


def test_secrets_in_the_environment_of_a_version_do_not_leave_the_agent() -> None:
    env = {"API_TOKEN": "hunter2", "MODE": "fast", "SOURCE": "https://ana:hunter2@example.org/x"}
    config = {"name": "m", "env": env}
    version = Version("id", "m:1", "m", "command", 0, (), datetime(2026, 1, 1, tzinfo=UTC), "ana", config)
    told = public_version(version)
    assert told.config["env"] == {"API_TOKEN": "(hidden)", "MODE": "fast", "SOURCE": "(hidden)"}
    assert version.config["env"]["API_TOKEN"] == "hunter2"
    assert public_version(told) == told
