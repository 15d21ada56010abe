"""`qd demo`: hands over to the demo's own story."""

from __future__ import annotations

import click

from quarterdeck_console.cli.call import Call, verb


@verb(
    hosts=False,
    short_help="See a model deployed, upgraded, protected and rolled back.",
    epilog="""
    qd demo
    qd demo --engine docker --keep
    qd demo --end /tmp/qd-demo-x   # end a demo that was kept
    qd demo --json                 # one JSON object a line
    """,
)
@click.option("--keep", is_flag=True, help="Leave the demo's agent and deployment running, and say how to reach them.")
@click.option(
    "--engine",
    type=click.Choice(["process", "docker"]),
    default="process",
    show_default=True,
    help="What runs the replicas.",
)
@click.option("--end", metavar="FOLDER", help="End the demo that was kept in this folder, and remove it.")
def command(call: Call, keep: bool, engine: str, end: str | None) -> int:
    """Train two small digit classifiers, and run the whole story on a private agent: about half a minute."""
    import importlib
    from pathlib import Path

    story = importlib.import_module("quarterdeck_console.demo.story")
    if end is not None:
        ended: int = story.end(Path(end), as_json=call.out.json)
        return ended
    code: int = story.run(as_json=call.out.json, keep=keep, engine=engine)
    return code
