"""`qd schema`: the JSON Schemas of what `--json` prints."""

from __future__ import annotations

from pathlib import Path

import click

from quarterdeck_console.cli.call import Call, verb
from quarterdeck_console.errors import NotFound

FOLDER = Path(__file__).parents[2] / "schemas"


@verb(
    hosts=False,
    short_help="The JSON Schemas of what --json prints.",
    epilog="""
    qd schema                      # the kinds there are
    qd schema DeploymentList > deployment-list.json
    """,
)
@click.argument("kind", required=False)
def command(call: Call, kind: str | None) -> int:
    """List the kinds that --json prints, or print the JSON Schema of one."""
    import json

    kinds = sorted(path.stem for path in FOLDER.glob("*.json"))
    if kind is None:
        if call.out.json:
            call.out.items("SchemaList", [{"kind": each} for each in kinds])
        else:
            for each in kinds:
                call.out.line(each)
        return 0
    if kind not in kinds:
        raise NotFound(f"there is no kind {kind!r}", hint=f"there are {', '.join(kinds)}")
    text = (FOLDER / f"{kind}.json").read_text(encoding="utf-8")
    if call.out.json:
        call.out.item("Schema", json.loads(text))
    else:
        call.out.line(text.rstrip("\n"))
    return 0
