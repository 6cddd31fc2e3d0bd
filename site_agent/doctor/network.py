"""The way to the aggregator's port: its name, and a TCP connection, through the proxy if there is one."""

import base64
import ipaddress
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from site_agent.doctor.finding import Examined, Finding, Proxy, failed, passed, warned

MAX_ADDRESSES = 8
MAX_ANSWER = 8192


class ProxyRefused(OSError):
    """A proxy answered CONNECT with something else than 200; `code` is its HTTP status, 0 for no HTTP at all."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(f"the proxy answered: {line}")
        self.code = code


def name(examined: Examined) -> Finding:
    """Look up who is dialled: the aggregator, or the proxy."""
    proxy = examined.proxy
    host, port = (proxy.host, proxy.port) if proxy else (examined.host, examined.port)
    if _is_address(host):
        return passed(f"{host} is an address", host=host, addresses=[host])
    try:
        found = addresses(host, port)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no host name"
        return failed(
            f"'{host}' has no address: {reason}",
            f"correct {f'the variable {proxy.variable}' if proxy else 'the address given as --aggregator'}, or have this "
            f"machine's DNS (/etc/resolv.conf) answer for it: getent hosts {host}",
            host=host,
        )
    through = " (the proxy, which looks the aggregator up)" if proxy else ""
    return passed(f"{host} is {', '.join(found)}{through}", host=host, addresses=found)


def tcp(examined: Examined) -> Finding:
    """Connect to every address, or through the proxy."""
    if examined.proxy is not None:
        return _through(examined, examined.proxy)
    found = [examined.host] if _is_address(examined.host) else addresses(examined.host, examined.port)
    with ThreadPoolExecutor(len(found), thread_name_prefix="tcp") as threads:
        tried = dict(zip(found, threads.map(lambda one: _connect(examined, one), found), strict=True))
    took = {one: result for one, result in tried.items() if isinstance(result, float)}
    errors = {one: result for one, result in tried.items() if isinstance(result, OSError)}
    words = {one: _reason(examined, error) for one, error in errors.items()}
    facts = {"port": examined.port, "connected_s": took, "errors": words}
    if not took:
        kind = next(iter(errors.values()))
        said = "; ".join(f"{one} port {examined.port} {reason}" for one, reason in words.items())
        return failed(said, _advice(kind, examined), **facts)
    best = min(took, key=lambda one: took[one])
    connected = f"{best} port {examined.port} answered in {1000 * took[best]:.0f} ms"
    if errors:
        return warned(
            f"{connected}; {'; '.join(f'{one} {reason}' for one, reason in words.items())}",
            "every new connection may lose time on the address that does not answer: mend its route, or take it out of the DNS",
            **facts,
        )
    return passed(connected, **facts)


def addresses(host: str, port: int) -> list[str]:
    """Return a name's addresses, in the order of this machine's preference. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))[:MAX_ADDRESSES]


def connect(examined: Examined) -> socket.socket:
    """Return a connection to the aggregator's port as gRPC makes it. Raises OSError, of a proxy ProxyRefused."""
    proxy = examined.proxy
    if proxy is None:
        return socket.create_connection((examined.host, examined.port), timeout=examined.patience_s)
    line = socket.create_connection((proxy.host, proxy.port), timeout=examined.patience_s)
    try:
        target = examined.config.aggregator
        login = base64.b64encode(proxy.authorization.encode()).decode()
        asked = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        asked += [f"Proxy-Authorization: Basic {login}"] * bool(proxy.authorization)
        line.sendall("\r\n".join([*asked, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < MAX_ANSWER and (more := line.recv(1024)):
            answer += more
        first = answer.partition(b"\r\n")[0].decode("ascii", "replace")
        parts = first.split()
        code = int(parts[1]) if len(parts) > 1 and parts[0].startswith("HTTP/") and parts[1].isdecimal() else 0
        if code != 200:
            raise ProxyRefused(code, "".join(c if c.isprintable() else "?" for c in first[:80]) or "nothing")
    except BaseException:
        line.close()
        raise
    return line


def _through(examined: Examined, proxy: Proxy) -> Finding:
    began = time.monotonic()
    try:
        connect(examined).close()
    except ProxyRefused as error:
        remedy = {
            407: f"the proxy wants a login: http://user:password@{proxy.host}:{proxy.port} in {proxy.variable}",
            0: f"{proxy.host}:{proxy.port} does not seem to be an HTTP proxy: correct {proxy.variable}",
        }.get(
            error.code,
            f"have the proxy allow CONNECT to {examined.config.aggregator}, or name {examined.host} in no_proxy to go past it",
        )
        return failed(f"through {proxy.host}:{proxy.port}: {error}", remedy, proxy_status=error.code)
    except OSError as error:
        return failed(
            f"the proxy {proxy.host} port {proxy.port} {_reason(examined, error)}",
            f"correct {proxy.variable}, or name {examined.host} in no_proxy to go past the proxy",
        )
    took = time.monotonic() - began
    return passed(f"the proxy connected to {examined.config.aggregator} in {1000 * took:.0f} ms", connected_s=took)


def _connect(examined: Examined, address: str) -> float | OSError:
    began = time.monotonic()
    try:
        socket.create_connection((address, examined.port), timeout=examined.patience_s).close()
    except OSError as error:
        return error
    return time.monotonic() - began


def _reason(examined: Examined, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"does not answer within {examined.patience_s:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "refuses the connection"
    return f"cannot be reached: {error.strerror or error}"


def _advice(error: OSError, examined: Examined) -> str:
    if isinstance(error, ConnectionRefusedError):
        return (
            f"nobody listens there, or a firewall rejects it: compare {examined.config.aggregator} with what the coordinator gave "
            "you, and ask whether the aggregator runs"
        )
    if isinstance(error, TimeoutError):
        return (
            f"most likely a firewall drops it: have outgoing TCP to {examined.host} port {examined.port} allowed for this machine "
            "(nothing comes in: the agent only dials out)"
        )
    return "this machine has no route there: check its network, then the routes of the hospital's"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
