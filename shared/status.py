"""Errors and gRPC status codes: one table, used by both sides.

The error's class travels in trailing metadata (`med-error`), so that the client raises the class the server raised.
Anything not in the table becomes INTERNAL with a fixed text: the text of an unexpected exception may hold a path or a name.
"""

import grpc

from shared import errors
from shared.protocol import ERROR_KEY

_Code = grpc.StatusCode

TABLE: dict[type[errors.MedDualLoRAError], grpc.StatusCode] = {
    errors.InvalidAdapter: _Code.INVALID_ARGUMENT,
    errors.InvalidUpdate: _Code.INVALID_ARGUMENT,
    errors.InputError: _Code.INVALID_ARGUMENT,
    errors.UpdateTooLarge: _Code.RESOURCE_EXHAUSTED,
    errors.NotEnrolled: _Code.PERMISSION_DENIED,
    errors.NotFound: _Code.NOT_FOUND,
    errors.ContractMismatch: _Code.FAILED_PRECONDITION,
    errors.IncompatibleProtocol: _Code.FAILED_PRECONDITION,
    errors.StaleRound: _Code.FAILED_PRECONDITION,
    errors.ConflictingUpdate: _Code.ALREADY_EXISTS,
    errors.IdentityInUse: _Code.ALREADY_EXISTS,
    errors.BadOffset: _Code.ABORTED,
    errors.Draining: _Code.UNAVAILABLE,
    errors.StoreUnavailable: _Code.UNAVAILABLE,
}

INTERNAL_TEXT = "internal error; the aggregator's log has the details under this call's id"

_BY_NAME = {kind.__name__: kind for kind in TABLE}
_RETRYABLE_CODES = {_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.ABORTED, _Code.CANCELLED, _Code.UNKNOWN}


def code_of(error: errors.MedDualLoRAError) -> grpc.StatusCode:
    """Return the status of an error's class."""
    return TABLE.get(type(error), _Code.INTERNAL)


def error_of(call: grpc.aio.AioRpcError) -> errors.MedDualLoRAError | None:
    """Return the error the server raised; None if the status did not come from our table (network, proxy, INTERNAL)."""
    for key, value in call.trailing_metadata() or ():
        if key == ERROR_KEY and str(value) in _BY_NAME:
            return _BY_NAME[str(value)](call.details() or "")
    return None


def is_retryable(call: grpc.aio.AioRpcError) -> bool:
    """Return whether the same call may succeed later without anybody acting."""
    error = error_of(call)
    return error.retryable if error else call.code() in _RETRYABLE_CODES
