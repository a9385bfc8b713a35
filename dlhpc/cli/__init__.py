"""The command line: one module per group of commands, imported only when its command runs.

A login node's shared file system makes every import dear, so `dlhpc --help` reads the short texts below and nothing
else.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import ClassVar

import click

from dlhpc import __version__
from dlhpc.errors import DlhpcError

_COMMANDS = {
    "init": ("dlhpc.cli.init:init", "Look at a folder or table and write a first spec."),
    "data": ("dlhpc.cli.data:data", "Pack, check and look at the data of a training."),
    "plan": ("dlhpc.cli.plan:plan", "Show everything that submit would do."),
    "render": ("dlhpc.cli.plan:render", "Write the job script to standard output."),
    "submit": ("dlhpc.cli.submit:submit", "Submit a training to the queue."),
    "status": ("dlhpc.cli.status:status", "Show where runs stand."),
    "watch": ("dlhpc.cli.watch:watch", "Follow a run with live curves in the terminal."),
    "logs": ("dlhpc.cli.status:logs", "Show what a run printed."),
    "cancel": ("dlhpc.cli.status:cancel", "End a run and all its processes."),
    "hold": ("dlhpc.cli.hold:hold", "Keep a waiting run from starting."),
    "release": ("dlhpc.cli.hold:release", "Let a held run start."),
    "resume": ("dlhpc.cli.status:resume", "Go on with a run that is over but not finished."),
    "report": ("dlhpc.cli.report:report", "Write the report of a run as one web page."),
    "predict": ("dlhpc.cli.predict:predict", "Let a trained network name pictures."),
    "site": ("dlhpc.cli.site:site", "Describe a machine and check the description (for centre staff)."),
    "env": ("dlhpc.cli.env:env", "Build software environments (for centre staff)."),
}


class LazyGroup(click.Group):
    """Commands from a table of `module:function` and short text, imported when used."""

    commands_table: ClassVar[dict[str, tuple[str, str]]] = _COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands_table:
            return None
        module, _, attribute = self.commands_table[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands_table and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.commands_table, n=1)
            raise click.UsageError(
                f"There is no command `{args[0]}`." + (f" Did you mean `{near[0]}`?" if near else ""), ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.commands_table.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", message="dlhpc %(version)s")
@click.option("--debug", is_flag=True, help="Show the full trace of an error.")
def cli(debug: bool) -> None:
    """Deep-learning training through the batch queue: pictures in, trained network and report out.

    \b
    Example:
      dlhpc init classification photos/     look at the folder, write photos.yaml
      dlhpc submit photos.yaml --wait       train
      dlhpc report last                     read how it went
    """


def run() -> None:
    """Run the command line and turn every expected failure into a short message.

    Exit codes: 2 for a user's mistake, 1 for everything else that failed; Ctrl-C is left to the caller.
    """
    debug = "--debug" in sys.argv[1:]
    try:
        cli.main(prog_name="dlhpc", standalone_mode=False)
    except DlhpcError as error:
        if debug:
            raise
        click.echo(f"dlhpc: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; what is left to say has no reader.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        # Files are read and written where it is known what for; what is left is mostly the output (`> FILE`).
        if debug:
            raise
        place = f"{error.filename}:" if error.filename else "cannot write the output:"
        click.echo(f"dlhpc: {place} {error.strerror or error}\n  → Check this place and its free space.", err=True)
        sys.exit(1)
    except MemoryError:
        click.echo("dlhpc: this machine has no memory left for the command", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"dlhpc: unexpected {type(error).__name__}: {error}\n"
            "  → This is a fault of dlhpc. Run again with `dlhpc --debug …` and send the output to its developers.",
            err=True,
        )
        sys.exit(1)
