"""What of a run's bytes was sent once, and what was sent again or in vain.

A payload byte is goodput once. An attempt at a transfer is useful from its offset up to where the next attempt began, and the
last one that ended OK all the way; a receipt without further bytes shows that the attempt before it had delivered everything.
Messages of calls that ended OK are goodput, unless the site made the same call again because the answer did not reach it.
Probes, which measure the line, are neither.
All the rest is repetition: messages of failed calls, payload that was sent again, further announcements of the same update.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aggregator.accounts.logs import Call, Traffic

PROBE = "probe"
UPLOAD, ANNOUNCEMENT, DOWNLOAD = "UploadDelta", "BeginUpload", "FetchAdapter"
LONGEST_OFFSET_REPLY = 11
"""Bytes of a BeginUpload answer that holds only an offset (a tag and a 64-bit varint). A receipt has a digest: 66 and more."""


@dataclass(frozen=True, slots=True)
class Useful:
    """Bytes of one call that were goodput, in one direction; `payload` of them are tensor bytes."""

    bytes: int = 0
    payload: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """One call and what of it was goodput."""

    call: Call
    up: Useful
    down: Useful


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A part of a transfer: payload from `offset`; `complete` says that afterwards the other side had all of it."""

    offset: int
    sent: int
    complete: bool


def accounts(calls: Sequence[Call]) -> list[Account]:
    """Return an account for each of a run's calls, which must be distinct and a site's in order (`logs.distinct`)."""
    in_vain = _made_again(calls)
    delivered: dict[int, int] = {}
    for transfer in _uploads(calls):
        in_vain |= _announced_again(calls, transfer)
        delivered |= zip(transfer, _delivered([_upload(calls[p]) for p in transfer]), strict=True)
    for transfer in _downloads(calls):
        delivered |= zip(transfer, _delivered([_download(calls[p]) for p in transfer]), strict=True)
    result = []
    for position, call in enumerate(calls):
        well = call.code == "OK" and position not in in_vain and call.purpose != PROBE
        up = delivered[position] if call.method == UPLOAD else call.up.payload_bytes if well else 0
        down = delivered[position] if call.method == DOWNLOAD else call.down.payload_bytes if well else 0
        result.append(Account(call, _useful(call.up, up, well), _useful(call.down, down, well)))
    return result


def updates(calls: Sequence[Call]) -> set[tuple[str, int]]:
    """Return site and round of every update that the aggregator has whole."""
    steps = [call for call in calls if call.method in (UPLOAD, ANNOUNCEMENT)]
    return {(call.site, call.round) for call in steps if _upload(call).complete}


def _useful(traffic: Traffic, delivered: int, well: bool) -> Useful:
    return Useful(delivered + (traffic.bytes - traffic.payload_bytes if well else 0), delivered)


def _delivered(attempts: Sequence[_Attempt]) -> list[int]:
    """Return for each attempt at one transfer the payload bytes that no later attempt sent again; 0 if it came to nothing."""
    result = [0] * len(attempts)
    had: float | None = None
    """Where what arrived otherwise begins, looking back from the end; None as long as nothing shows that anything arrived."""
    for index in reversed(range(len(attempts))):
        one = attempts[index]
        if had is None and one.complete:
            had = math.inf
        if had is not None and one.sent:
            result[index] = int(min(one.sent, max(had - one.offset, 0)))
            had = min(had, one.offset)
    return result


def _announced_again(calls: Sequence[Call], transfer: Sequence[int]) -> set[int]:
    """Return the positions of announcements of an update of which the aggregator had heard already."""
    heard = [p for p in transfer if calls[p].code == "OK"]
    return {p for p in heard[1:] if calls[p].method == ANNOUNCEMENT}


def _upload(call: Call) -> _Attempt:
    if call.method == ANNOUNCEMENT:
        return _Attempt(0, 0, call.code == "OK" and call.down.bytes > LONGEST_OFFSET_REPLY)
    return _Attempt(call.offset, call.up.payload_bytes, call.code == "OK")


def _download(call: Call) -> _Attempt:
    return _Attempt(call.offset, call.down.payload_bytes, call.code == "OK")


def _uploads(calls: Sequence[Call]) -> Iterable[list[int]]:
    """Return the positions of each update's announcements and transfers: a site has one update a round."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for position, call in enumerate(calls):
        if call.method in (UPLOAD, ANNOUNCEMENT):
            found[call.site, call.round].append(position)
    return found.values()


def _downloads(calls: Sequence[Call]) -> Iterable[list[int]]:
    """Return the positions of each download's attempts: another begins with attempt 0 after one that ended OK."""
    found: list[list[int]] = []
    current: dict[tuple[str, int], list[int]] = {}
    for position, call in enumerate(calls):
        if call.method != DOWNLOAD:
            continue
        earlier = current.get((call.site, call.round))
        if earlier is None or (call.attempt == 0 and calls[earlier[-1]].code == "OK"):
            current[call.site, call.round] = earlier = []
            found.append(earlier)
        earlier.append(position)
    return found


def _made_again(calls: Sequence[Call]) -> set[int]:
    """Return the positions of calls with one answer that the site made again, whatever the aggregator thought of them."""
    found: set[int] = set()
    before: dict[tuple[str, str], int] = {}
    for position, call in enumerate(calls):
        if call.method in (UPLOAD, DOWNLOAD):
            continue
        earlier = before.get((call.site, call.method))
        if earlier is not None and call.attempt and calls[earlier].attempt == call.attempt - 1:
            found.add(earlier)
        before[call.site, call.method] = position
    return found
