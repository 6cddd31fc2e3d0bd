"""Every error either side raises on purpose: one small tree.

Each error says in a sentence what happened and what to do next, and knows whether trying again can help. The pairing with
gRPC status codes is `shared.status`; nothing else decides a status.
"""


class MedDualLoRAError(Exception):
    """Base of all errors raised on purpose. `retryable`: the same call may succeed later without anybody acting."""

    retryable = False


class InputError(MedDualLoRAError):
    """A person's input cannot be used: a missing file, a bad option, a malformed table. Raised before any work starts."""


class InvalidAdapter(InputError):
    """An adapter file or message does not have exactly the tensors it must have. The message names the first tensor at fault."""


class InvalidUpdate(MedDualLoRAError):
    """An upload was refused for its content; sending the same bytes again cannot help."""


class UpdateTooLarge(MedDualLoRAError):
    """More bytes were announced or sent than the layout of this round allows."""


class NotEnrolled(MedDualLoRAError):
    """The caller's certificate names no site of this federation, or one that was evicted."""


class NotFound(MedDualLoRAError):
    """No such federation, round or adapter version."""


class ContractMismatch(MedDualLoRAError):
    """Site and federation disagree on what was agreed: base model, adapter, recipe or number of patients."""


class IncompatibleProtocol(MedDualLoRAError):
    """Agent and aggregator speak protocol versions that do not meet."""


class StaleRound(MedDualLoRAError):
    """The call belongs to a round that is no longer open; ask for the current round and go on from there."""


class ConflictingUpdate(MedDualLoRAError):
    """Another update of the same site for the same round is already accepted."""


class IdentityInUse(MedDualLoRAError):
    """Another running agent already uses this site's certificate."""


class BadOffset(MedDualLoRAError):
    """Chunks do not continue where the aggregator's durable copy ends; begin again to learn the offset."""

    retryable = True


class Draining(MedDualLoRAError):
    """This replica is shutting down; another one, or the next start, takes the call."""

    retryable = True


class StoreUnavailable(MedDualLoRAError):
    """The aggregator's store cannot be read or written now: database away, disk full. Nothing that was acknowledged is lost."""

    retryable = True


class AggregatorUnreachable(MedDualLoRAError):
    """No answer from the aggregator within the time the caller allows."""

    retryable = True


class NewerStore(InputError):
    """The store was written by a newer release than this one."""
