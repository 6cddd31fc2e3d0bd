"""The targets by name, and each one's share of the mutations: those that cost a millisecond get more than those that cost ten."""

from importlib import import_module

from tests.fuzz.target import Target

SHARES = {
    "files": 0.35,
    "payloads": 0.30,
    "contracts": 0.17,
    "client": 0.13,
    "services": 0.045,
    "loopback": 0.005,
}
_WHERE = {
    "files": ("reading", "AdapterFiles"),
    "payloads": ("reading", "Payloads"),
    "contracts": ("reading", "Contracts"),
    "client": ("hostile", "Client"),
    "services": ("serving", "Services"),
    "loopback": ("loopback", "Loopback"),
}


def make(name: str) -> Target:
    """Return a target; its code is imported now, so that whoever guides the mutations can watch it."""
    module, kind = _WHERE[name]
    made: Target = getattr(import_module(f"tests.fuzz.{module}"), kind)()
    return made


def counts(total: int, names: list[str]) -> dict[str, int]:
    """Return how many mutations each target gets of `total`: at least one, and all of them together no fewer."""
    whole = sum(SHARES[name] for name in names)
    found = {name: max(1, round(total * SHARES[name] / whole)) for name in names}
    found[names[0]] += max(0, total - sum(found.values()))
    return found
