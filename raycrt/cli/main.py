"""The command line: a thin layer over the library, with one spec for every command.

Further commands come from the entry-point group `raycrt.commands`, so that packages that build
on this one add theirs without being imported here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from raycrt import __version__
from raycrt.cli.about import completion
from raycrt.cli.about.doctor import doctor
from raycrt.cli.about.recipes import recipes, show
from raycrt.cli.bundle import bundle
from raycrt.cli.certify import certify
from raycrt.cli.data import data
from raycrt.cli.init import init
from raycrt.cli.report import report
from raycrt.cli.train import train
from raycrt.cli.verify import verify
from raycrt.errors import InvalidInput
from raycrt.system import extras, interruption, pipes
from raycrt.system.places import outputs


class _Helped:
    """Help that says what value an option takes, and nothing of flags, which take none."""

    def get_params(self, ctx: Any) -> Any:
        found = super().get_params(ctx)  # type: ignore[misc]
        for each in found:
            if getattr(each, "is_flag", False):
                each.metavar = ""
        return found


class _Command(_Helped, TyperCommand):
    pass


class _Commands(_Helped, TyperGroup):
    """Commands that print one sentence when a signal stops them."""

    def invoke(self, ctx: Any) -> Any:
        with interruption.reported():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"raycrt {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, search and certify classifiers with a proved l2 radius for every image.

    A run is a recipe with overrides: `raycrt recipes` lists them, and
    `raycrt show digits` all keys of one. Start with `raycrt doctor` and
    `raycrt demo`; then, step by step:

      raycrt data    photos/                 describe the data in a folder
      raycrt init    runs/b --data photos/   write a recipe for it
      raycrt search  --recipe digits --out runs/a
                                             find the best configuration
      raycrt train   --recipe runs/a/search/best.yaml --out runs/a
      raycrt certify --out runs/a            prove a radius for each test image
      raycrt verify  runs/a                  prove them again, independently
      raycrt report  runs/a                  a page, Markdown, a plot
      raycrt bundle  runs/a --out a.zip      one file, to verify anywhere
    """


@contextmanager
def one_line() -> Iterator[None]:
    """End a failed command with one line on standard error: exit code 2 for bad input or
    a package that is not installed; 1 for a full or failing disk, with how to continue from what
    has been written."""
    shown, threading.excepthook = threading.excepthook, _shown_of_thread
    try:
        yield
    except InvalidInput as error:
        print(f"raycrt: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        said = extras.lacking(error)
        if said is None:
            raise
        print(f"raycrt: {said}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        cause = outputs.disk_error(error)
        if cause is None:
            raise
        said = f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
        print(
            f"raycrt: {said}; what was written before is kept, and the same command goes on from "
            "it (raycrt search: with --resume)",
            file=sys.stderr,
        )
        sys.exit(1)
    finally:
        threading.excepthook = shown


def _shown_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Print the error of a thread, except that of a failing disk, which the command reports."""
    if outputs.disk_error(failed.exc_value) is None:
        threading.__excepthook__(failed)


def assembled() -> typer.Typer:
    """The application with all commands, those of other packages too."""
    app.registered_commands = []
    for command in (data, init, train, certify, verify, report, bundle, recipes, show, doctor):
        app.command(cls=_Command)(command)
    for entry in sorted(entry_points(group="raycrt.commands"), key=lambda e: e.name):
        app.command(entry.name, cls=_Command)(entry.load())
    return app


def main() -> None:
    """Run the command line."""
    pipes.outlive_readers()
    run = assembled()
    with one_line(), completion.words_of_bash():
        run(prog_name="raycrt")
