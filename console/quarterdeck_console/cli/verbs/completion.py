"""`qd completion`: a script that teaches a shell to complete `qd`."""

from __future__ import annotations

import click

from quarterdeck_console.cli.call import Call, verb


@verb(
    hosts=False,
    short_help="Print a completion script for a shell.",
    epilog="""
    qd completion bash > ~/.local/share/bash-completion/completions/qd
    qd completion zsh > ~/.zfunc/_qd
    qd completion fish > ~/.config/fish/completions/qd.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(call: Call, shell: str) -> int:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from quarterdeck_console.cli.main import PROGRAM, cli

    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(cli, {}, PROGRAM, "_QD_COMPLETE")
    # `source()` of click starts the shell to ask for its version; the script is what is wanted, not the opinion.
    script = complete.source_template % complete.source_vars()
    if call.out.json:
        call.out.item("Completion", {"shell": shell, "script": script})
    else:
        call.out.line(script)
    return 0
