"""model.toml, field by field: what is right comes through, what is wrong is named with its place."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck_agent.bundle import check_name, parse
from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.protocol import ManifestFile

SMALL: dict[str, Any] = {"name": "digits", "version": "1", "runtime": "python"}


def refused(config: object, files: tuple[ManifestFile, ...] | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(config, files)
    assert caught.value.field
    return caught.value


def test_a_whole_model_toml_is_read() -> None:
    model = parse(
        SMALL
        | {
            "settings": {"handler": "handler:Model", "batch": 8},
            "env": {"OMP_NUM_THREADS": "1"},
            "resources": {"gpus": 1, "vram": "4GiB", "cpus": 1.5, "memory": "512 MB", "shm": 1024},
            "health": {"path": "/health", "start_timeout": "1h30m"},
            "golden": [
                {"name": "five", "body": {"x": [1, 2]}, "expect": {"y": 5}, "tolerance": 0.5, "timeout": "500ms"}
            ],
            "container": {"writable_root": True, "user": "1000:1000"},
            "metadata": {"git": "abc", "metrics": {"accuracy": 0.9}},
            "card": "README.md",
        }
    )
    assert model.label == "digits:1"
    assert (model.resources.vram, model.resources.memory, model.resources.shm) == (4 << 30, 512_000_000, 1024)
    assert (model.health.path, model.health.start_timeout) == ("/health", 5400.0)
    assert (model.golden[0].expect, model.golden[0].timeout, model.golden[0].status) == ({"y": 5}, 0.5, 200)
    assert (model.writable_root, model.user, model.metadata["metrics"]) == (True, "1000:1000", {"accuracy": 0.9})


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ({}, Resources()),
        ({"gpus": 2}, Resources(gpus=2)),
        ({"vram": "20GiB"}, Resources(gpus=1, vram=20 << 30)),
        ({"gpus": 0, "vram": "20GiB"}, Resources(gpus=0, vram=20 << 30)),
        ({"gpus": 1, "vram": "20GiB", "exclusive": True}, Resources(gpus=1, vram=20 << 30, exclusive=True)),
        ({"mig": "1g.10gb"}, Resources(gpus=1, mig="1g.10gb")),
        ({"mig": "1g.10gb+me"}, Resources(gpus=1, mig="1g.10gb+me")),
        ({"gpus": 1, "gpu_model": "H100 PCIe"}, Resources(gpus=1, gpu_model="H100 PCIe")),
        ({"gpus": 1, "gpu_labels": ["fast", "team-a", "fast"]}, Resources(gpus=1, gpu_labels=("fast", "team-a"))),
    ],
)
def test_what_is_asked_of_the_gpus_is_read(table: dict[str, Any], wanted: Resources) -> None:
    assert parse(SMALL | {"resources": table}).resources == wanted


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"name": None}, "name"),
        ({"name": "Digits"}, "name"),
        ({"name": ".."}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "a" * 4096}, "name"),
        ({"name": "dіgits"}, "name"),  # a Cyrillic i
        ({"name": "digits²"}, "name"),
        ({"version": 2}, "version"),
        ({"version": "1/2"}, "version"),
        ({"nmae": "x"}, "nmae"),
        ({"settings": []}, "settings"),
        ({"settings": {"since": datetime.date(2026, 1, 1)}}, "settings.since"),
        ({"settings": {"rate": float("nan")}}, "settings.rate"),
        ({"settings": {"big": 2**70}}, "settings.big"),
        ({"settings": {"broken": "\ud800"}}, "settings.broken"),
        ({"env": {"A": 1}}, "env.A"),
        ({"env": {"A=B": "1"}}, "env"),
        ({"resources": {"gpus": True}}, "resources.gpus"),
        ({"resources": {"gpus": -1}}, "resources.gpus"),
        ({"resources": {"exclusive": True}}, "resources.exclusive"),
        ({"resources": {"gpus": 1, "exclusive": "yes"}}, "resources.exclusive"),
        ({"resources": {"mig": "1g"}}, "resources.mig"),
        ({"resources": {"mig": "1g.10gb", "vram": "4GiB"}}, "resources.vram"),
        ({"resources": {"mig": "1g.10gb", "gpus": 0}}, "resources.mig"),
        ({"resources": {"mig": "1g.10gb", "gpus": 2}}, "resources.gpus"),
        ({"resources": {"gpu_model": "H100"}}, "resources.gpu_model"),
        ({"resources": {"gpus": 1, "gpu_model": " "}}, "resources.gpu_model"),
        ({"resources": {"gpus": 1, "gpu_model": ""}}, "resources.gpu_model"),
        ({"resources": {"gpu_labels": ["fast"]}}, "resources.gpu_labels"),
        ({"resources": {"gpus": 1, "gpu_labels": "fast"}}, "resources.gpu_labels"),
        ({"resources": {"gpus": 1, "gpu_labels": [1]}}, "resources.gpu_labels"),
        ({"resources": {"gpus": 1, "gpu_labels": ["a b"]}}, "resources.gpu_labels"),
        ({"resources": {"memory": "4g"}}, "resources.memory"),
        ({"resources": {"memory": 0}}, "resources.memory"),
        ({"resources": {"ram": "4GiB"}}, "resources.ram"),
        ({"resources": {"cpus": 0}}, "resources.cpus"),
        ({"health": {"path": "health"}}, "health.path"),
        ({"health": {"start_timeout": "soon"}}, "health.start_timeout"),
        ({"health": {"start_timeout": ""}}, "health.start_timeout"),
        ({"golden": {}}, "golden"),
        ({"golden": [{}, {"tolerance": -1}]}, "golden[1].tolerance"),
        ({"golden": [{}, {"tolerance": True}]}, "golden[1].tolerance"),
        ({"golden": [{"body": 1, "body_file": "a"}]}, "golden[0].body_file"),
        ({"golden": [{"expect_file": "../a"}]}, "golden[0].expect_file"),
        ({"golden": [{"method": "DELETE"}]}, "golden[0].method"),
        ({"golden": [{"name": "a"}, {"name": "a"}]}, "golden[1].name"),
        ({"golden": [{"name": "\x1b[31mred"}]}, "golden[0].name"),
        ({"golden": [{}] * 65}, "golden"),
        ({"container": {"user": "root;id"}}, "container.user"),
        ({"container": {"writable_root": "yes"}}, "container.writable_root"),
        ({"card": "/etc/passwd"}, "card"),
    ],
)
def test_a_wrong_field_is_named(extra: dict[str, Any], field: str) -> None:
    assert refused(SMALL | extra).field == field


def test_every_refusal_says_what_to_do() -> None:
    error = refused(SMALL | {"resources": {"memory": "4g"}})
    assert error.hint == 'Write a size, for example "4GiB" or "512MB".'
    assert refused({"name": "a", "version": "1"}).hint == "Add a line: runtime = ..."


def test_a_deeply_nested_table_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert "nested" in refused(SMALL | {"settings": deep}).detail


def test_a_huge_table_is_refused() -> None:
    assert "bytes" in refused(SMALL | {"metadata": {"a": "x" * (1 << 20)}}).detail


def test_files_named_by_golden_requests_and_the_card_must_be_in_the_bundle() -> None:
    files = (ManifestFile("golden/1.json", 1, "0" * 64),)
    good = SMALL | {"golden": [{"body_file": "golden/1.json"}]}
    assert parse(good, files).golden[0].body_file == "golden/1.json"
    assert refused(SMALL | {"golden": [{"body_file": "golden/2.json"}]}, files).field == "golden[0].body_file"
    assert refused(SMALL | {"card": "README.md"}, files).field == "card"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    [
        "name",
        "version",
        "runtime",
        "settings",
        "env",
        "resources",
        "health",
        "golden",
        "container",
        "metadata",
        "card",
        "gpus",
        "memory",
        "cpus",
        "path",
        "start_timeout",
        "body",
        "body_file",
        "tolerance",
        "status",
        "user",
    ]
)
tables = st.dictionaries(keys, plain | st.dictionaries(keys, plain) | st.lists(st.dictionaries(keys, plain)))


@settings(max_examples=120, deadline=None)
@given(plain | tables | tables.map(lambda table: SMALL | table))
def test_whatever_comes_in_nothing_but_invalid_input_goes_out(config: object) -> None:
    try:
        parse(config)
    except InvalidInput as error:
        assert error.detail.encode() is not None
        assert error.field


@given(st.text(max_size=70))
def test_a_name_that_passes_is_plain_ascii(text: str) -> None:
    try:
        check_name(text, "name")
    except InvalidInput:
        return
    assert text.isascii() and "/" not in text and text not in (".", "..") and text == text.lower()
