"""The `aggregator` command. Each module here adds one area's commands; what is heavy is imported when a command runs."""

import os
import sys
import traceback
from types import TracebackType
from typing import Annotated, NoReturn

import typer

from aggregator.cli import accounts, certifying, observing, reading, report, serving, setting_up, status, steering

EXIT_INPUT, EXIT_UNREACHABLE, EXIT_CANNOT_BIND, EXIT_INTERNAL = 3, 4, 5, 70
TRACEBACK = "MED_DUALLORA_TRACEBACK"

EPILOG = (
    "Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 input that cannot be used, "
    "4 aggregator or store out of reach now (trying again may help), 5 port in use, 70 internal error (a defect of this program; "
    f"with {TRACEBACK}=1 in the environment its traceback is printed)."
)


def _tell_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        from shared.protocol import VERSION

        typer.echo(f"aggregator {importlib.metadata.version('med-duallora')} (protocol {VERSION})")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    del version


def build() -> typer.Typer:
    """Return the command with all its subcommands."""
    app = typer.Typer(
        help="Run a federation: sites fine-tune one model together; only the global adapter's changes reach this program.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for area in (setting_up, certifying, serving, status, reading, observing, steering, accounts, report):
        area.register(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line on stderr and an exit code for everything a person can put right.

    `arguments` stand in for those of the process.
    """
    from aggregator.errors import CannotBind
    from shared.errors import AggregatorUnreachable, MedDualLoRAError, StoreUnavailable

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes to stderr what we say in our own words
    try:
        build()(args=arguments)
    except MedDualLoRAError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, CannotBind):
            sys.exit(EXIT_CANNOT_BIND)
        sys.exit(EXIT_UNREACHABLE if isinstance(error, AggregatorUnreachable | StoreUnavailable) else EXIT_INPUT)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        _fail(EXIT_INPUT, f"{f'{error.filename}: ' if error.filename else ''}{reason}; check that path and try again")
    except Exception as error:
        if type(error).__module__.startswith("sqlalchemy."):  # the library is loaded only by commands with a store
            cause = str(getattr(error, "orig", None) or error).splitlines()[0]
            _fail(
                EXIT_INPUT, f"the store cannot be read or written ({cause}); check --store, and the space on its disk"
            )
        _fail_internally(error)


def _fail(code: int, sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


def _fail_internally(error: Exception) -> NoReturn:
    """Log where it happened and say so: by module and line, for paths and values in a message may be private."""
    import structlog

    places = _places(error.__traceback__)
    if structlog.is_configured():
        structlog.get_logger().error("internal_error", error=type(error).__name__, places=places)
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error)
    _fail(
        EXIT_INTERNAL,
        f"internal error ({type(error).__name__} at {places[-1]}), a defect of this program; "
        f"run again with {TRACEBACK}=1 and report what it prints",
    )


def _places(found: TracebackType | None) -> list[str]:
    """The modules and lines a traceback goes through, innermost last."""
    return [f"{frame.f_globals.get('__name__')}:{line}" for frame, line in traceback.walk_tb(found)]
