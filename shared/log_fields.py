"""What a log may say: the names of its fields. A field that is not here is withheld, value and all.

A log travels: to a colleague, into a ticket, to the developers. So a new field is a decision: could its value name a patient, a
file of theirs, or say something of a single case? A test holds that every field in the source is listed
(tests/unit/shared/test_log_fields.py).
"""

from collections.abc import MutableMapping
from typing import Any

from shared.contract import ALLOWED_METRICS

WITHHELD = "withheld: not a field that logs may have"

_EVENT = "event level timestamp exception count"
_WHO = """
    address agent_id authenticated by call_id caller connection federation holder process side site software_version vendor
"""
_WHAT = """
    abandoned_round after all arm asked_digest asked_version attempt base_version before code codec contract dataset differs
    digest entry first form held_digest held_version input_digest kept_as leaves left_out line missing mode never_leaves path phase
    purpose round rounds rpc signal sites step stored tls version
"""
_WHY = "advice cause consequence error fallback next reason why words"
_HOW_MUCH = """
    aggregation_error budget bytes bytes_down bytes_up case_count cases committed computed delta duration_s epsilon
    epsilon_rdp exit_code expires_at free_bytes freed_bytes gives_up_in_s gradient_checkpointing held_bytes
    limit_bytes messages_down messages_up offset payload_bytes payload_bytes_down payload_bytes_up residual_rank
    retry_in_s retry_s sample_bytes samples silent_s sites_count test_count train_count training_patients within_bytes
"""
_PHASES = "activations_s comparing_s evaluating_s fetching_s starting_s training_s uploading_s waiting_s"
FIELDS = frozenset(" ".join((_EVENT, _WHO, _WHAT, _WHY, _HOW_MUCH, _PHASES, *ALLOWED_METRICS)).split())


def only_allowed(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Withhold what is not listed (a structlog processor)."""
    del logger, name
    return {key: value if key in FIELDS else WITHHELD for key, value in event.items()}
