"""`qd version`: this console's version, without asking anybody."""

from __future__ import annotations

import platform

from quarterdeck_console.cli.call import Call, verb
from quarterdeck_console.release import VERSION


@verb(
    hosts=False,
    short_help="This console's version.",
    epilog="""
    qd version
    qd version --json
    """,
)
def command(call: Call) -> int:
    """Print this console's version and what it speaks. The agents' versions are in `qd hosts`."""
    if call.out.json:
        call.out.item(
            "ConsoleVersion", {"version": VERSION, "api_versions": ["v1"], "python": platform.python_version()}
        )
    else:
        call.out.line(f"qd {VERSION} (API v1, Python {platform.python_version()})")
    return 0
