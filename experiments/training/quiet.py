"""Logs of what is measured here: warnings only."""

import logging

import structlog


def process() -> None:
    """Let this process log warnings and errors and nothing else."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
