"""The `aggregator` command. Each module here adds one area's commands; what is heavy is imported when a command runs."""

import os
import sys

import typer

from aggregator.cli import accounts, reading, serving, setting_up, steering

EXIT_INPUT, EXIT_UNREACHABLE, EXIT_CANNOT_BIND = 3, 4, 5

EPILOG = (
    "Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 input that cannot be used, "
    "4 aggregator unreachable, 5 port in use."
)


def build() -> typer.Typer:
    """Return the command with all its subcommands."""
    app = typer.Typer(
        help="Run a federation: sites fine-tune one model together; only the global adapter's changes reach this program.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for area in (setting_up, serving, reading, steering, accounts):
        area.register(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Entry point: one line on stderr and an exit code for everything a person can put right.

    `arguments` stand in for those of the process.
    """
    from aggregator.errors import CannotBind
    from shared.errors import AggregatorUnreachable, MedDualLoRAError

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes to stderr what we say in our own words
    try:
        build()(args=arguments)
    except MedDualLoRAError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, CannotBind):
            sys.exit(EXIT_CANNOT_BIND)
        sys.exit(EXIT_UNREACHABLE if isinstance(error, AggregatorUnreachable) else EXIT_INPUT)
