"""Who has changed something and looks, sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.bundles import push
from tests.end_to_end.rig import Agent, until

pytestmark = pytest.mark.envoy


def test_a_change_shows_in_the_first_read_after_its_answer(host: Agent, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        label = push(host, tmp_path, str(number))
        status, operation = host.api("PUT", "/v1/deployments/toy", {"version": label, "dwell": 0})
        assert status == 202
        assert host.deployment("toy")["wanted_revision"] == number
        status, found = host.api("GET", f"/v1/operations/{operation['id']}")
        assert status == 200 and found["revision"] == number
    until(lambda: host.deployment("toy")["state"] == "serving", "it serves")
    assert host.api("POST", "/v1/deployments/toy/scale", {"replicas": 2})[0] == 202
    assert host.deployment("toy")["wanted_revision"] == 4
    assert host.api("DELETE", "/v1/deployments/toy", {})[0] == 202
    status, found = host.api("GET", "/v1/deployments/toy")
    assert status == 404 or found["status"]["state"] == "removing"
