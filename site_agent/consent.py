"""What this hospital consents to: pins and limits in `site.toml`, and the contract that a person has agreed to.

The agent takes part as long as what the aggregator offers is inside; what is not is refused by name, and the agent stays up and
looks again, so that nobody has to be there when the aggregator comes back into bounds.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from shared import compatibility
from shared.canonical import canonical_json
from shared.codecs import CODECS
from shared.contract import ALLOWED_METRICS, Contract
from shared.errors import InputError, MedDualLoRAError
from shared.names import plain
from shared.recipe import Mode, Recipe
from site_agent.ledger import Spent

SHORTEST_DIGEST = 12


class ConsentWithheld(MedDualLoRAError):
    """What the aggregator asks for is not what this site agreed to. The message names the field, and both values."""


class ContractChanged(MedDualLoRAError):
    """What the aggregator offers is not what was joined any more, or it does not know that this site has joined."""


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day in which the site trains, by this machine's clock: minutes since midnight. It may go past midnight."""

    begins: int
    ends: int

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Read "22:00-06:00". Raises InputError."""
        found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text)
        if found is None:
            raise InputError(f"a training window is HH:MM-HH:MM, such as 22:00-06:00, got '{text[:40]}'")
        hours = [int(number) for number in found.groups()]
        begins, ends = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
        if begins == ends:
            raise InputError(f"training window '{text}' has no length; leave `windows` out to train at any time")
        return cls(begins, ends)

    def __str__(self) -> str:
        hours = (*divmod(self.begins, 60), *divmod(self.ends, 60))
        return "{:02}:{:02}-{:02}:{:02}".format(*hours)

    def holds(self, minute: int) -> bool:
        """Whether a minute of the day is in it."""
        if self.begins < self.ends:
            return self.begins <= minute < self.ends
        return minute >= self.begins or minute < self.ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """Table [agreed] of `site.toml`. Empty and 0 pin nothing."""

    federation: str = ""
    """Name of the federation."""
    base_model: str = ""
    """SHA-256 of the base model, hex; the first 12 digits or more."""
    adapter: str = ""
    """SHA-256 of version 0 of the adapter, hex; the first 12 digits or more."""
    manifest: str = ""
    """SHA-256 of what the adapter consists of: tensors, ranks, blocks, head; the first 12 digits or more."""
    recipe: str = ""
    """Name of the recipe."""
    mode: str = ""
    """How the two parts are trained: joint, alternating or non-interference."""
    codec: str = ""
    """How an update's numbers are written when they leave, such as f32."""
    at_most: Mapping[str, float] = field(default_factory=dict)
    """Largest values of recipe parameters, by name, such as local_epochs."""
    rounds: int = 0
    """The most rounds that the contract may have."""
    sites_at_least: int = 0
    """The fewest updates of which a result may be made: with two, each site can subtract itself from the mean."""
    metrics: tuple[str, ...] | None = None
    """Figures that may leave; None: all that the protocol allows."""
    arms: bool = False
    """Whether the same figures of probe, alone, global and dual on held-out cases may leave at the end, so that all see whom it
    helped."""
    bytes_a_round: int = 0
    """The most bytes of tensors that leave for one round, repeated ones counted."""
    bytes_in_all: int = 0
    """The same over all rounds."""
    epsilon: float = 0.0
    """Largest dp_epsilon. With it, or with delta, a contract without differential privacy is refused."""
    delta: float = 0.0
    """Largest dp_delta."""
    windows: tuple[Window, ...] = ()
    """Times of day at which the site trains, such as 20:00-06:30, by this machine's clock; none: always."""

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> "Pins":
        """Read the table. Raises InputError naming the key."""
        types: dict[str, type[Any]] = {
            "federation": str, "base_model": str, "adapter": str, "manifest": str, "recipe": str, "mode": str, "codec": str,
            "at_most": dict, "rounds": int, "sites_at_least": int, "metrics": list, "arms": bool, "bytes_a_round": int,
            "bytes_in_all": int, "windows": list, "epsilon": float, "delta": float,
        }  # fmt: skip
        table = {
            key: float(value) if types.get(key) is float and type(value) is int else value
            for key, value in table.items()
        }
        for key, value in table.items():
            if key not in types:
                raise InputError(f"[agreed] has no key '{key}' (known: {', '.join(types)})")
            if type(value) is not types[key] or not _positive(value):
                expected = {int: "whole number above 0", float: "number above 0"}.get(types[key], types[key].__name__)
                raise InputError(f"[agreed] {key} must be a {expected}, got {value!r}")
        values = dict(table)
        for key in ("base_model", "adapter", "manifest"):
            if (text := str(values.get(key, ""))) and not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_DIGEST},64}}", text):
                raise InputError(
                    f"[agreed] {key} must be at least {SHORTEST_DIGEST} hexadecimal digits, got '{text[:80]}'"
                )
        for key, known_words in (("mode", get_args(Mode)), ("codec", CODECS)):
            if key in table and table[key] not in known_words:
                raise InputError(f"[agreed] {key} must be one of {', '.join(known_words)}, got '{table[key][:80]}'")
        values["windows"] = tuple(Window.parse(str(text)) for text in table.get("windows", ()))
        if "metrics" in table:
            values["metrics"] = tuple(map(str, table["metrics"]))
            for name in values["metrics"]:
                if name not in ALLOWED_METRICS:
                    raise InputError(f"[agreed] metrics: '{name}' is none (known: {', '.join(ALLOWED_METRICS)})")
        known = {one.name for one in fields(Recipe)}
        for name, most in table.get("at_most", {}).items():
            if name not in known or type(most) not in (int, float) or type(getattr(Recipe(), name)) not in (int, float):
                raise InputError(f"[agreed.at_most] {name} = {most!r}: give the largest number of a recipe parameter")
        return cls(**values)

    def table(self) -> dict[str, Any]:
        """Return the table that `parse` reads as these pins: what pins nothing is not in it."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["windows"] = [str(one) for one in self.windows]
        return {name: value for name, value in values.items() if value or (name == "metrics" and value is not None)}

    def check(self, contract: Contract) -> None:
        """Raise ConsentWithheld naming every field of a contract that is out of bounds."""
        outside = [
            f"{name}: this site's site.toml says {pinned}, the aggregator offers {offered}"
            for name, pinned, offered, inside in self._pairs(contract)
            if not inside
        ]
        if outside:
            raise ConsentWithheld("; ".join(outside))

    def _pairs(self, contract: Contract) -> Iterator[tuple[str, Any, Any, bool]]:
        base = contract.manifest.metadata.base_model_sha256
        for name, pinned, offered in (
            ("federation", self.federation, contract.federation),
            ("recipe", self.recipe, contract.recipe.name),
            ("mode", self.mode, contract.recipe.mode),
            ("codec", self.codec, contract.recipe.codec),
        ):
            yield name, f"'{pinned}'", f"'{offered}'", pinned in ("", offered)
        for name, pinned, offered in (
            ("base_model", self.base_model, base),
            ("adapter", self.adapter, contract.adapter_digest),
            ("manifest", self.manifest, contract.manifest.digest),
        ):
            yield name, pinned[:SHORTEST_DIGEST], offered[:SHORTEST_DIGEST], offered.startswith(pinned)
        for name, most in self.at_most.items():
            offered = getattr(contract.recipe, name)
            yield f"recipe parameter {name}", f"at most {most:g}", offered, offered <= most
        policy = contract.policy
        yield "rounds", f"at most {self.rounds}", policy.rounds, not self.rounds or policy.rounds <= self.rounds
        together = compatibility.blended(contract.recipe, policy.quorum)
        robust = f" and robust rule {contract.recipe.robust}: results of {together}" if together < policy.quorum else ""
        yield (
            "sites_at_least",
            self.sites_at_least,
            f"a quorum of {policy.quorum}{robust}",
            together >= self.sites_at_least,
        )
        recipe = contract.recipe
        for name, most, value in (
            ("epsilon", self.epsilon, recipe.dp_epsilon),
            ("delta", self.delta, recipe.dp_delta),
        ):
            offered = f"dp_{name} {value:g}" if recipe.dp_noise else "no differential privacy (dp_noise 0)"
            inside = not most or (recipe.dp_noise > 0 and value <= most)
            yield name, f"at most {most:g}", offered, inside

    def check_spent(self, size: int, round_number: int, spent: Spent) -> None:
        """Raise ConsentWithheld if so many more bytes of tensors for a round pass a budget."""
        for name, budget, left in (
            ("bytes_a_round", self.bytes_a_round, spent.for_round),
            ("bytes_in_all", self.bytes_in_all, spent.in_all),
        ):
            if budget and left + size > budget:
                raise ConsentWithheld(
                    f"{name}: this site's site.toml says {budget}, {left} have left and {size} more are asked for; they stay here"
                )
        if self.rounds and len(spent.rounds - {round_number}) >= self.rounds:
            raise ConsentWithheld(
                f"rounds: this site's site.toml says at most {self.rounds}, updates of {len(spent.rounds)} have left, and round "
                f"{round_number} is another"
            )

    def may_leave(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the figures that may leave."""
        return {name: value for name, value in metrics.items() if self.metrics is None or name in self.metrics}

    def may_train(self, minute: int) -> bool:
        """Whether the site trains at this minute of the day."""
        return not self.windows or any(window.holds(minute) for window in self.windows)


def _positive(value: Any) -> bool:
    """Whether a number is one that a limit can be; what is no number may be anything."""
    return type(value) not in (int, float) or 0 < value < math.inf


NO_PINS = Pins()


def differences(agreed: Contract, offered: Contract) -> list[str]:
    """Return what differs between two contracts, field by field, with both values."""
    mine, theirs = (dict(_flat(one)) for one in (agreed, offered))
    return [
        f"{name}: agreed {_short(mine.get(name, 'nothing'))}, offered {_short(theirs.get(name, 'nothing'))}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]


def _flat(contract: Contract) -> Iterator[tuple[str, Any]]:
    metadata, policy = contract.manifest.metadata, contract.policy
    yield "federation", contract.federation
    yield "adapter", contract.adapter_digest
    for name in (one.name for one in fields(metadata)):
        yield f"adapter {name}", getattr(metadata, name)
    for spec in contract.manifest.layout.tensors:
        yield f"tensor {spec.name}", [list(spec.shape), spec.dtype]
    yield "recipe", contract.recipe.name
    for name in (one.name for one in fields(contract.recipe) if one.name != "name"):
        yield f"recipe parameter {name}", getattr(contract.recipe, name)
    for name in (one.name for one in fields(policy)):
        yield name, getattr(policy, name)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value).decode()
    shown = plain(text, 41)
    return f"'{shown[:SHORTEST_DIGEST]}…'" if len(text) > 40 else f"'{shown}'" if isinstance(value, str) else shown
