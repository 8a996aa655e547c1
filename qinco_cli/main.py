"""The application: commands, global options, and how failures end."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from qinco_cli import decode, encode, evaluate, info, presets, train, verify
from qinco_core.errors import QincoError

app = typer.Typer(
    name="qinco",
    help="Compress vectors to a few bytes each with QINCo2, and get them back.",
    epilog="Start with: qinco train --preset qinco2-S data.fvecs",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for module in (train, encode, decode, evaluate, info, verify, presets):
    module.register(app)


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"qinco {version('qinco')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: exit 0 done, 1 the work failed, 2 wrong usage, 130 interrupted."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, standalone_mode=True)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has enough; keep the interpreter from flushing into nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (QincoError, KeyboardInterrupt, MemoryError) as error:
        if debug:
            raise
        sys.exit(_explain(error))


def _explain(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        print(f"qinco: {error}" if str(error) else "qinco: interrupted", file=sys.stderr)
        return 130
    if isinstance(error, MemoryError):
        print(f"qinco: out of memory ({error}); use --limit, or a smaller model", file=sys.stderr)
        return 1
    print(f"qinco: {error}", file=sys.stderr)
    assert isinstance(error, QincoError)
    return error.exit_code
