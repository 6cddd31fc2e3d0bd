"""The proxy that gRPC would go through, by the variables of the environment.

gRPC has rules of its own (https://github.com/grpc/grpc/blob/master/doc/environment_variables.md, and grpc/src/core/handshaker/
http_connect/http_proxy_mapper.cc): the first of grpc_proxy, https_proxy and http_proxy that is set, in lower case only, with an
http:// address only; no_grpc_proxy, or else no_proxy, names what is dialled directly: domains with all below them, addresses and
networks, neither ports nor `*`. A test holds them against the gRPC that is installed.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from site_agent.doctor.finding import Examined, Finding, Proxy, passed, warned

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
OTHERS = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "GRPC_PROXY")
"""What other programs go by."""
DEFAULT_PORT = 443


def settings(examined: Examined) -> Finding:
    """Say which proxy is used, and what looks like one and is not."""
    environ, host = examined.environ, examined.host
    if examined.config.tls is None:
        return passed("not used: plain text stays on this machine")
    variable = next((name for name in VARIABLES if name in environ), "")
    if not environ.get(variable, ""):
        ignored = [name for name in OTHERS if environ.get(name)]
        if ignored and not _left_out(host, environ.get("NO_PROXY", environ.get("no_proxy", ""))):
            return warned(
                f"{', '.join(ignored)} is set, and gRPC does not read it: the agent dials directly",
                f"if {host} is reached through that proxy only, set https_proxy (lower case) for the agent, to an http:// address",
                ignored=ignored,
            )
        return passed("none is set: the agent dials directly")
    exempting = "no_grpc_proxy" if "no_grpc_proxy" in environ else "no_proxy"
    if _left_out(host, environ.get(exempting, "")):
        return passed(f"{variable} is set, and {exempting} leaves {host} out: the agent dials directly")
    found = parse(variable, environ[variable])
    if found is None:
        return warned(
            f"{variable} is set to an address that gRPC cannot use ({_scheme(environ[variable])}): the agent dials directly",
            f"give it the form http://proxy:port, or name {host} in no_proxy if no proxy is needed",
            variable=variable,
        )
    examined.proxy = found
    hint = ""
    if environ.get("NO_PROXY") and "no_proxy" not in environ:
        hint = "; NO_PROXY is set, and gRPC reads no_proxy in lower case only"
    words = f"the agent goes through {found.host}:{found.port} ({variable}){hint}"
    facts = {"proxy": f"{found.host}:{found.port}", "variable": variable}
    if hint and _left_out(host, environ["NO_PROXY"]):
        return warned(words, f"set no_proxy to the same, if {host} is to be dialled directly", **facts)
    return passed(words, **facts)


def parse(variable: str, address: str) -> Proxy | None:
    """Read a proxy's address as gRPC does; None for one that it ignores."""
    try:
        parts = urlsplit(address)
        port = parts.port or DEFAULT_PORT
    except ValueError:
        return None
    if parts.scheme != "http" or not parts.hostname:
        return None
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    return Proxy(parts.hostname, port, variable, login)


def _scheme(address: str) -> str:
    """Say what is wrong with it, without what it may hold of a password."""
    scheme = address.partition("://")[0] if "://" in address else ""
    return f"scheme '{scheme[:20]}'" if scheme and scheme != "http" else "no http:// in front, or no host"


def _left_out(host: str, entries: str) -> bool:
    """Whether a list of names and networks leaves a host out."""
    name = host.lower()
    for entry in (one.strip().lower() for one in entries.split(",")):
        suffix = entry.lstrip(".")
        if suffix and (name == suffix or name.endswith(f".{suffix}")):
            return True
        try:
            if ipaddress.ip_address(name) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of an environment this is about."""
    names = (*VARIABLES, *OTHERS, "no_grpc_proxy", "no_proxy", "NO_PROXY")
    return {name: environ[name] for name in names if name in environ}
