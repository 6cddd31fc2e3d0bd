"""Errors of this side alone, in a module that costs nothing to import."""

import errno

from shared.errors import InputError, MedDualLoRAError


class CannotBind(MedDualLoRAError):
    """The address cannot be listened on."""

    @classmethod
    def because(cls, error: OSError, address: str, option: str, what: str = "") -> "CannotBind":
        """Return it for what the system said of an address, host:port, that `option` named."""
        port = address.rpartition(":")[2]
        causes = {
            errno.EADDRINUSE: (
                "the port is in use",
                f"another aggregator holds it, or another program (ss -ltnp 'sport = :{port}' shows which): stop that",
            ),
            errno.EACCES: (
                "this user may not",
                "a port below 1024 takes root or CAP_NET_BIND_SERVICE (docs/deployment.md)",
            ),
            errno.EADDRNOTAVAIL: ("this machine has no such address", "0.0.0.0 is every address it has"),
        }
        cause, advice = causes.get(error.errno or 0, (error.strerror or str(error), "check the host"))
        return cls(f"cannot listen on {address}{what}: {cause}; {advice}, or choose another address with {option}")


class NoStore(InputError):
    """Where a store was looked for there is none, or no federation in it: nobody has made it yet."""
