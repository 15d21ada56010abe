"""What `qd-agent` itself says, before any part of the agent works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_installed_without_its_packages_it_says_which_extra_brings_them(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['docker'] = None; from quarterdeck_agent.__main__ import main; sys.exit(main(['run']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "agent"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "has no docker" in done.stderr and "quarterdeck[agent]" in done.stderr
