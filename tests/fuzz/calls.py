"""A case of calls: which methods, by whom, and the messages' bytes. One line of JSON, then the messages one after the other."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from google.protobuf.message import Message

from tests.fuzz import messages

MOST_CALLS = 6


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `note`: of a request who calls; of an answer the status it ends with. `stalls`: its stream does not end."""

    method: str
    messages: tuple[bytes, ...]
    note: str = ""
    stalls: bool = False

    @classmethod
    def of(cls, method: str, *said: Message, note: str = "") -> "Call":
        """Return a call with these messages."""
        return cls(method, tuple(one.SerializeToString() for one in said), note)


@dataclass(frozen=True, slots=True)
class Case:
    """Calls one after the other, in the world of this number."""

    calls: tuple[Call, ...]
    world: int = 0


def packed(case: Case) -> bytes:
    """Return a case as bytes."""
    head = [[call.method, call.note, call.stalls, [len(one) for one in call.messages]] for call in case.calls]
    text = json.dumps({"world": case.world, "calls": head}).encode()
    return text + b"\n" + b"".join(one for call in case.calls for one in call.messages)


def unpacked(data: bytes) -> Case | None:
    """Undo `packed`; None for what it did not make."""
    head, _, rest = data.partition(b"\n")
    try:
        value = json.loads(head)
        made, start = [], 0
        for method, note, stalls, lengths in value["calls"]:
            said = []
            for length in lengths:
                said.append(rest[start : start + length])
                start += length
            made.append(Call(str(method), tuple(said), str(note), bool(stalls)))
        return Case(tuple(made), int(value["world"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def mutated(
    case: Case, others: Sequence[Case], kinds: dict[str, type[Message]], notes: Sequence[str], rng: Random
) -> Case:
    """Return a case with one to three changes. `others`: where further calls come from; `kinds`: each method's message;
    `notes`: what may stand in a call's note."""
    made = list(case.calls)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(made)) if made else 0
        match rng.randrange(10):
            case 0:
                made.insert(place, rng.choice(rng.choice(others).calls))
            case 1 if made:
                made.insert(place, made[rng.randrange(len(made))])
            case 2 if len(made) > 1:
                del made[place]
            case 3 if made:
                other = rng.randrange(len(made))
                made[place], made[other] = made[other], made[place]
            case 4 if made:
                made[place] = replace(made[place], note=rng.choice(notes))
            case _ if made:
                kind = kinds.get(made[place].method)
                made[place] = _call(made[place], kind, others, rng)
    return Case(tuple(made[:MOST_CALLS]), case.world)


def _call(call: Call, kind: type[Message] | None, others: Sequence[Case], rng: Random) -> Call:
    said = list(call.messages)
    place = rng.randrange(len(said)) if said else 0
    if said and kind is not None and (len(said) == 1 or rng.random() < 0.6):
        said[place] = messages.mutated(said[place], kind, rng)
        return replace(call, messages=tuple(said))
    stalls = call.stalls
    match rng.randrange(7):
        case 0 if said:
            del said[place]
        case 1 if said:
            said.insert(place, said[rng.randrange(len(said))])
        case 2 if said:
            said[place:place] = [said[place]] * rng.choice((2, 20, 200))
        case 3 if said:
            rng.shuffle(said)
        case 4 if rng.random() < 0.2:
            stalls = True
        case 5:
            said.append(rng.choice((b"", b"\xff" * 5, rng.randbytes(40))))
        case _:
            said += [one for other in rng.choice(others).calls if other.method == call.method for one in other.messages]
    return replace(call, messages=tuple(said[:300]), stalls=stalls)
