"""The `site-agent` command: one module per area, put together here. Heavy imports wait until a command runs."""

import os
import sys

import typer

from shared.errors import AggregatorUnreachable, InputError, MedDualLoRAError
from site_agent.cli import (
    agent,
    backbone,
    cache,
    doctor,
    egress,
    exporting,
    join,
    judging,
    new_adapter,
    phantom,
    prepare,
    privacy,
    report,
)

HELP = """Fine-tunes the cardiac-MRI model on this hospital's cases and shares only the global low-rank part.

Without a command it is the agent: it takes part in a federation until that is finished, or for as long as it runs.

Example: site-agent --aggregator fed.example.org:443 --config site.toml"""

EPILOG = """Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 input or contract refused (the message says what to do),
4 aggregator unreachable, 70 unexpected error (MED_DUALLORA_TRACEBACK=1 shows where), 130 stopped by a signal after saving."""

app = typer.Typer(
    help=HELP,
    epilog=EPILOG,
    invoke_without_command=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for area in (
    agent,
    join,
    doctor,
    prepare,
    phantom,
    backbone,
    cache,
    new_adapter,
    judging,
    exporting,
    report,
    egress,
    privacy,
):
    area.register(app)


def main() -> None:
    """Run the command line; a known error is one line on standard error and a documented exit code."""
    try:
        app()
    except AggregatorUnreachable as error:
        _fail(error, 4)
    except (InputError, MedDualLoRAError) as error:
        _fail(error, 3)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        _fail(
            InputError(f"cannot use {error.filename or 'a file'}: {error.strerror}; check the path and its rights"), 3
        )
    except Exception as error:
        if os.environ.get("MED_DUALLORA_TRACEBACK"):
            raise
        # a traceback may hold paths that name a patient: shown only to who asks for it
        _fail(MedDualLoRAError(f"unexpected {type(error).__name__}; set MED_DUALLORA_TRACEBACK=1 to see where"), 70)


def _fail(error: MedDualLoRAError, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)
