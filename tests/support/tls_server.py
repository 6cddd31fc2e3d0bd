"""TLS servers that are wrong in one way, on loopback, each on a thread of its own."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Answer = Callable[[socket.socket], None]
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""An empty SETTINGS frame: how a server begins HTTP/2."""


@contextmanager
def listening(answer: Answer) -> Iterator[int]:
    """Yield the port of a listener that treats every connection, one after the other, as `answer` does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed below
                while True:
                    line, _ = server.accept()
                    with line, contextlib.suppress(OSError):
                        answer(line)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert not thread.is_alive()


def tls(
    certificate: Path,
    key: Path,
    *,
    alpn: tuple[str, ...] = ("h2",),
    ca: Path | None = None,
    says: bytes = SETTINGS,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> Answer:
    """Shake hands with this certificate, demand one of `ca` if given, say something, and wait until the other side closes.

    `newest`: of TLS. Up to 1.2 a client hears within the handshake that its certificate is not taken, from 1.3 on after it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    context.load_cert_chain(certificate, key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if ca is not None:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED

    def answer(line: socket.socket) -> None:
        line.settimeout(5)
        with context.wrap_socket(line, server_side=True) as wrapped:
            if says:
                wrapped.sendall(says)
            _drain(wrapped)

    return answer


def plain(says: bytes) -> Answer:
    """Speak no TLS."""

    def answer(line: socket.socket) -> None:
        line.settimeout(5)
        line.recv(1 << 16)
        line.sendall(says)
        _drain(line)

    return answer


def silent(line: socket.socket) -> None:
    """Take the connection, and say nothing until the other side has gone."""
    line.settimeout(10)
    _drain(line)


def http_proxy(status: str = "200 Connection established", seen: list[str] | None = None) -> Answer:
    """Answer CONNECT with this status; with 200 carry bytes both ways. `seen` gets the heads of the requests."""

    def answer(line: socket.socket) -> None:
        line.settimeout(5)
        head = b""
        while b"\r\n\r\n" not in head:
            head += line.recv(4096)
        if seen is not None:
            seen.append(head.decode())
        line.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
        if not status.startswith("200"):
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as onward:
            back = threading.Thread(target=_carry, args=(onward, line), daemon=True)
            back.start()
            _carry(line, onward)
            back.join(5)

    return answer


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _drain(line: socket.socket) -> None:
    while line.recv(1 << 16):
        pass
