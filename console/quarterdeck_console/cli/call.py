"""What every verb shares: its options, the hosts it is about, and how its coroutine is run.

A verb is a function of a `Call` that returns an exit code; errors that end it are raised and told in `main`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from quarterdeck_console.cli.output import Output
from quarterdeck_console.errors import Usage

if TYPE_CHECKING:
    from quarterdeck_console.client import Client
    from quarterdeck_console.config import Fleet, Host
    from quarterdeck_console.errors import ConsoleError

Function = Callable[..., int]


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a verb."""

    out: Output
    patterns: tuple[str, ...] = ()
    deadline: float = 5.0

    def fleet(self) -> Fleet:
        """The hosts of the fleet file."""
        from quarterdeck_console.config import load

        return load(os.environ, os.geteuid())

    def hosts(self) -> tuple[Host, ...]:
        """The hosts this call is about: all unless some were named."""
        from quarterdeck_console.config import choose

        hosts = choose(self.fleet(), self.patterns or self._from_environment())
        if not hosts:
            raise Usage(
                "the fleet file knows no host", hint="add one: qd hosts add NAME unix:///run/quarterdeck/agent.sock"
            )
        return hosts

    def targets(self) -> tuple[Host, ...]:
        """The hosts a change is made on: named ones, or the only one there is. Raises `Usage` where that is unclear."""
        hosts = self.hosts()
        if len(hosts) > 1 and not self.patterns and not self._from_environment():
            known = ", ".join(host.name for host in hosts)
            raise Usage("several hosts are known: say which one to change", hint=f"give --host NAME; known: {known}")
        return hosts

    def target(self) -> Host:
        """The one host that is asked."""
        hosts = self.targets()
        if len(hosts) > 1:
            raise Usage(
                "this works on one host at a time", hint=f"give one --host; chosen: {', '.join(h.name for h in hosts)}"
            )
        return hosts[0]

    def _from_environment(self) -> tuple[str, ...]:
        named = os.environ.get("QUARTERDECK_HOST", "")
        return tuple(named.split(",")) if named and "://" not in named else ()


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run a verb's coroutine."""
    import asyncio

    return asyncio.run(work)


def verb(*, hosts: bool = True, **attributes: Any) -> Callable[[Function], click.Command]:
    """Make a click command of a function of a `Call`: adds `--json`, and the options to choose its hosts."""

    def decorate(function: Function) -> click.Command:
        @functools.wraps(function)
        def callback(as_json: bool, host: tuple[str, ...] = (), deadline: float = 5.0, **options: Any) -> int:
            return function(Call(Output(as_json, os.environ), host, deadline), **options)

        decorated: Any = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout (see qd schema).")(
            callback
        )
        if hosts:
            decorated = click.option(
                "--deadline", type=click.FloatRange(0.05), default=5.0, show_default=True, metavar="SECONDS",
                help="How long a host may take to answer before it counts as unreachable.",
            )(decorated)  # fmt: skip
            decorated = click.option(
                "--host", "-H", multiple=True, metavar="NAME", shell_complete=complete_hosts,
                help="Only this host; a glob like 'gpu-*'; may be repeated.",
            )(decorated)  # fmt: skip
        attributes.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        return click.command(cls=Verb, **attributes)(decorated)

    return decorate


class Verb(click.Command):
    """A command whose epilog holds examples, shown as they are written."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            import inspect

            formatter.write_paragraph()
            with formatter.section("Examples"):
                for line in inspect.cleandoc(self.epilog).splitlines():
                    formatter.write(" " * formatter.current_indent + line + "\n")


def complete_hosts(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """Host names for the shell's completion."""
    from quarterdeck_console.config import load
    from quarterdeck_console.errors import ConsoleError

    try:
        return [host.name for host in load(os.environ, os.geteuid()).hosts if host.name.startswith(incomplete)]
    except ConsoleError:
        return []


def collect(
    call: Call, hosts: tuple[Host, ...], question: Callable[[Client], Any], *, absent_is_fine: bool = False
) -> tuple[list[tuple[str, Any]], list[ConsoleError]]:
    """Ask all hosts; what they said with their names, and the errors of those that did not."""
    import asyncio

    from quarterdeck_console import fleet

    answers = asyncio.run(fleet.ask(hosts, question, call.deadline))
    if absent_is_fine:
        answers = fleet.without_absent(answers)
    values = [(answer.host.name, answer.value) for answer in answers if answer.error is None]
    return values, [answer.error for answer in answers if answer.error is not None]


def show(
    call: Call,
    kind: str,
    found: list[tuple[str, Any]],
    errors: list[ConsoleError],
    *,
    answered: int,
    human: Callable[[], None],
) -> int:
    """Print what hosts said in the form that was asked for; `answered` hosts did."""
    from quarterdeck_console.cli.envelope import plain
    from quarterdeck_console.errors import exit_code

    code = exit_code(errors, answered)
    if call.out.json:
        if answered or not errors:
            return call.out.items(kind, [plain(value, host) for host, value in found], errors, answered)
        return call.out.items(kind, [], errors)
    if answered or not errors:
        human()
    call.out.errors(errors)
    return code
