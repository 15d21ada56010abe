"""The command line: which verbs there are, and how a run of one ends.

A verb's module is imported when it is called or asked about, never to list it: the words in the table here are all
that `qd --help` needs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from quarterdeck_console.cli.output import Output
from quarterdeck_console.errors import ConsoleError, Interrupted, Usage

SECTIONS = {
    "Models": {
        "push": "Send a bundle to a host as an immutable version.",
        "deploy": "Serve a version under a name, replacing what serves there.",
        "predict": "Call a deployed model through the gateway.",
        "rollback": "Serve an earlier revision again.",
        "scale": "Run another number of replicas.",
        "restart": "Start the replicas anew.",
        "stop": "Stop serving, keep everything.",
        "rm": "Remove a deployment.",
    },
    "Looking": {
        "status": "Every deployment on every host.",
        "describe": "One deployment in full.",
        "history": "A deployment's revisions.",
        "logs": "The replicas' output, also of those long gone.",
        "versions": "What can be deployed.",
        "operations": "Who asked for what, and how it went.",
        "runtimes": "How versions can be served.",
    },
    "Hosts": {
        "hosts": "The hosts this console knows.",
        "gpus": "Every GPU, whose its memory is, and how it was.",
        "doctor": "Check hosts and say how to mend what is not well.",
    },
    "Console": {
        "serve": "The console in a browser on this machine.",
        "demo": "See a model deployed, upgraded, protected and rolled back.",
        "version": "This console's version.",
        "schema": "The JSON Schemas of what --json prints.",
        "completion": "Print a completion script for a shell.",
    },
}
VERBS = {name: words for verbs in SECTIONS.values() for name, words in verbs.items()}
PROGRAM = "qd"


class Verbs(click.Group):
    """A group whose commands live in modules of `cli.verbs`, each imported when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"quarterdeck_console.cli.verbs.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in VERBS:
            import difflib

            near = difflib.get_close_matches(name, VERBS, 1)
            raise click.UsageError(f"there is no verb {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name, help=words) for name, words in VERBS.items() if name.startswith(incomplete)]


@click.group(cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--read-only", is_flag=True, help="Open the console so that it changes nothing.")
@click.option("--no-mouse", is_flag=True, help="Leave the mouse to the terminal, so that it selects text.")
@click.option("--theme", metavar="NAME", help="Colours of the console; ansi-dark and ansi-light for plain terminals.")
@click.pass_context
def cli(context: click.Context, read_only: bool, no_mouse: bool, theme: str | None) -> int:
    """Run models on your own machines: push, deploy, watch, roll back.

    Without a verb, on a terminal, it opens the console.

    Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 not allowed, 5 host unreachable, 6 partial, 7 conflict,
    8 timed out, 130 interrupted. Every verb has --json and --help with examples.
    """
    if context.invoked_subcommand is not None:
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo(context.get_help())
        return 0
    from quarterdeck_console.tui.main import run as open_console

    return open_console(read_only=read_only, mouse=False if no_mouse else None, theme=theme)


def run(arguments: Sequence[str]) -> int:
    """Run `qd` with these arguments and return its exit code; every way to end passes here."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    out = Output("--json" in _before_dashes(arguments), os.environ)
    try:
        code = _ended(arguments, out)
        out.flush()
        return code
    except BrokenPipeError:
        # The reader has gone; point stdout at nothing so that the interpreter's own flush at exit does not complain.
        _discard_stdout()
        return 1
    except OSError as error:
        _discard_stdout()
        out.errors([ConsoleError(f"cannot write the output: {error.strerror or error}")])
        return 1


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _ended(arguments: Sequence[str], out: Output) -> int:
    try:
        code = cli.main(list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as error:
        usage = f"{PROGRAM} {_verb(error)}".strip()
        return out.fail(Usage(error.format_message(), hint=f"see {usage} --help"))
    except click.ClickException as error:
        return out.fail(Usage(error.format_message()))
    except (KeyboardInterrupt, click.Abort):
        return out.fail(Interrupted("interrupted"))
    except ConsoleError as error:
        return out.fail(error)
    return code if isinstance(code, int) else 0


def _verb(error: click.UsageError) -> str:
    return (error.ctx.info_name or "") if error.ctx is not None and error.ctx.parent is not None else ""


def _before_dashes(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments
