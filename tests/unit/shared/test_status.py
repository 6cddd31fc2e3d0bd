"""Errors and gRPC statuses: one table, the same on both sides."""

import grpc
import pytest

from shared import errors, status
from shared.protocol import ERROR_KEY

LOCAL_ONLY = {
    errors.MedDualLoRAError,  # the base of the tree
    errors.AggregatorUnreachable,  # there was no answer to carry it
    errors.NewerStore,  # ends the aggregator before it serves
}


def call_error(code: grpc.StatusCode, details: str = "", error: str = "") -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*([(ERROR_KEY, error)] if error else []))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)


def test_every_error_that_can_travel_has_a_status() -> None:
    tree = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.MedDualLoRAError)}
    assert tree - status.TABLE.keys() == LOCAL_ONLY


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        # The table of the design, row by row.
        (errors.InvalidUpdate, grpc.StatusCode.INVALID_ARGUMENT, False),
        (errors.NotEnrolled, grpc.StatusCode.PERMISSION_DENIED, False),
        (errors.StaleRound, grpc.StatusCode.FAILED_PRECONDITION, False),
        (errors.ConflictingUpdate, grpc.StatusCode.ALREADY_EXISTS, False),
        (errors.UpdateTooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED, False),
        (errors.Draining, grpc.StatusCode.UNAVAILABLE, True),
    ],
)
def test_an_error_has_the_status_that_the_design_gives_it(
    error: type[errors.MedDualLoRAError], code: grpc.StatusCode, retryable: bool
) -> None:
    assert status.code_of(error("x")) is code
    assert status.is_retryable(call_error(code, "x", error.__name__)) is retryable


def test_a_subclass_from_elsewhere_has_no_status_of_its_own() -> None:
    class Private(errors.InvalidUpdate):
        pass

    assert status.code_of(Private("x")) is grpc.StatusCode.INTERNAL


def test_two_errors_of_one_status_are_told_apart_by_name() -> None:
    code = grpc.StatusCode.FAILED_PRECONDITION
    assert type(status.error_of(call_error(code, "old", "StaleRound"))) is errors.StaleRound
    assert type(status.error_of(call_error(code, "old", "ContractMismatch"))) is errors.ContractMismatch
    assert str(status.error_of(call_error(code, "old", "StaleRound"))) == "old"


@pytest.mark.parametrize("name", ["", "SystemExit", "MedDualLoRAError", "KeyError"])
def test_a_status_that_is_not_from_the_table_is_no_error_of_ours(name: str) -> None:
    assert status.error_of(call_error(grpc.StatusCode.UNAVAILABLE, "connection refused", name)) is None


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        (grpc.StatusCode.UNAVAILABLE, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, True),
        (grpc.StatusCode.INTERNAL, False),
        (grpc.StatusCode.UNIMPLEMENTED, False),
        (grpc.StatusCode.UNAUTHENTICATED, False),
    ],
)
def test_a_fault_of_the_network_may_pass_and_one_of_the_software_not(code: grpc.StatusCode, retryable: bool) -> None:
    assert status.is_retryable(call_error(code)) is retryable
