"""A link that delays requests to a server, and counts the requests and bytes that cross it.

It copies bytes between sockets and parses only requests, so its overhead is small. It runs as a separate process until
its stdin is closed. A line on stdin sets the delay in milliseconds; the answer is the number of requests by method and
the bytes of responses since the previous line.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) \S+ HTTP/1\.1\r\n")
_CHUNK_BYTES = 1 << 20


class SlowLink:
    """A running link."""

    def __init__(self, process: subprocess.Popen[str], endpoint: str) -> None:
        """Wrap a running process."""
        self._process = process
        self.endpoint = endpoint
        """URL to use instead of the server's."""

    def set_latency(self, milliseconds: float) -> dict[str, int]:
        """Delay requests from now on; return the counts so far and reset them."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with pipes
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(f"{milliseconds}\n")
        self._process.stdin.flush()
        counts: dict[str, int] = json.loads(self._process.stdout.readline())
        return counts


@contextmanager
def slow_link(server: str) -> Iterator[SlowLink]:
    """Run a link to the server at a URL."""
    command = [sys.executable, __file__, server]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it was started with pipes
            yield SlowLink(process, process.stdout.readline().strip())
        finally:
            process.kill()


class _Link:
    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self.latency_s = 0.0
        self.counts: Counter[str] = Counter()

    def serve(self, client: socket.socket) -> None:
        """Copy both ways until one side ends."""
        server = socket.create_connection(self._server)
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._answers, args=(server, client), daemon=True).start()
        with suppress(OSError):
            while data := client.recv(_CHUNK_BYTES):
                self.counts.update(found.decode() for found in _REQUEST.findall(data))
                if self.latency_s:
                    time.sleep(self.latency_s)
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        with suppress(OSError):
            while length := server.recv_into(buffer):
                client.sendall(buffer[:length])
                self.counts["bytes"] += length
            client.shutdown(socket.SHUT_WR)


def main() -> None:
    """Run a link."""
    host, port = sys.argv[1].removeprefix("http://").split(":")
    link = _Link(host, int(port))
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)

    def accept() -> None:
        while True:
            threading.Thread(target=link.serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    for line in sys.stdin:
        counts, link.counts = link.counts, Counter()
        link.latency_s = float(line) / 1000
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
