"""An HTTP/1.1 proxy between a client and an S3 server that records requests, and injects the faults of real networks.

It runs in its own process, so that the tests may fork, and ends when its parent process does. The Host header is passed
on unchanged, because signatures cover it.
"""
# ruff: noqa: T201 - it communicates with its parent process

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

Kind = Literal[
    "drop", "reset", "500", "503", "403", "404", "short", "ignore range", "stall", "stall at once", "cut", "lost"
]
"""Kind of a fault; see `Fault.kind`."""

_CHUNK_BYTES = 256 * 1024
_ERRORS = {
    "500": (500, "Internal Server Error", "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "Slow Down", "SlowDown", "Please reduce your request rate."),
    "403": (403, "Forbidden", "AccessDenied", "Access Denied"),
    "404": (404, "Not Found", "NoSuchKey", "The specified key does not exist."),
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule that injects a fault into some requests. If several rules match a request, the first one applies."""

    kind: Kind
    """`drop` closes the connection mid-body with a correct Content-Length, `reset` does the same with a TCP reset;
    `short` sends half of the body with a matching Content-Length; `ignore range` responds with 200 and the whole
    object; `stall` stops mid-body, `stall at once` before the first byte; a number is the status of an S3 error. `cut`
    resets the connection instead of passing the request on; `lost` passes it on, and resets instead of answering."""
    method: str = "GET"
    """Method of the matching requests; "" for any."""
    path: str = ""
    """Regular expression to search in path and query."""
    skip: int = 0
    """Number of matching requests to pass on before the first fault."""
    times: int | None = None
    """Maximum number of faults; None: no limit."""
    probability: float = 1.0
    """Probability of a fault for each matching request, drawn with the seed of the proxy."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the proxy saw it."""

    method: str
    path: str
    """Without query, percent-encoded."""
    query: str
    range: str
    """The Range header, such as "bytes=0-99", or ""."""
    if_match: str
    """The If-Match header, or ""."""
    status: int = 0
    """Status of the response; 0 if none was sent."""
    body_bytes: int = 0
    """Bytes of the body that were sent to the client."""
    fault: str = ""
    """Kind of the injected fault, or ""."""


class FaultProxy:
    """A running proxy, as the tests control it."""

    def __init__(self, process: subprocess.Popen[str], endpoint: str) -> None:
        self._process = process
        self.endpoint = endpoint
        """URL to use instead of the server's."""

    def behave(self, *faults: Fault, seed: int = 0, latency_s: float = 0.0, bytes_per_s: float | None = None) -> None:
        """Replace the rules, and clear the record of requests.

        Args:
            faults: The rules; none: every request is passed on.
            seed: Seed of the rules with a probability.
            latency_s: Delay before each request is passed on.
            bytes_per_s: Bandwidth that all bodies share; None: unlimited.
        """
        rules = [asdict(fault) for fault in faults]
        self._ask({"faults": rules, "seed": seed, "latency_s": latency_s, "bytes_per_s": bytes_per_s})

    def requests(self) -> list[Request]:
        """Return the requests since the last call of `behave`, in order of arrival."""
        return [Request(**each) for each in self._ask({})]

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def fault_proxy(server: str, key: str = "", secret: str = "") -> Iterator[FaultProxy]:
    """Run a proxy in front of a server.

    Args:
        server: URL of the server.
        key: Access key for requests of the proxy itself, which respond to ranges with whole objects.
        secret: Secret of that key.
    """
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"server": server, "key": key, "secret": secret}) + "\n")
            process.stdin.flush()
            yield FaultProxy(process, json.loads(process.stdout.readline())["endpoint"])
        finally:
            process.kill()


# -- The process of the proxy -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Head:
    """First line and headers of a message."""

    line: list[str]
    headers: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> _Head:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:-2])]
        return cls(lines[0].split(" ", 2), headers)

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def encode(self, *without: str, **added: str) -> bytes:
        kept = [(name, value) for name, value in self.headers if name.lower() not in without]
        headers = [*kept, *((name.replace("_", "-"), value) for name, value in added.items())]
        return "\r\n".join([" ".join(self.line), *(f"{name}: {value}" for name, value in headers), "", ""]).encode(
            "latin-1"
        )


async def _read_body(head: _Head, reader: asyncio.StreamReader) -> bytes:
    """Return the body of a message as it was sent, including the chunk headers."""
    if head.get("transfer-encoding").lower() != "chunked":
        return await reader.readexactly(int(head.get("content-length") or 0))
    parts = []
    while True:
        size = await reader.readuntil(b"\r\n")
        parts += [size, await reader.readexactly(int(size.split(b";")[0], 16) + 2)]
        if int(size.split(b";")[0], 16) == 0:
            return b"".join(parts)


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


async def _body_of_unknown_length(reply: _Head, reader: asyncio.StreamReader) -> bytes | None:
    """Return the body of a response without Content-Length, or None if there is one."""
    if reply.get("transfer-encoding").lower() == "chunked":
        return _unchunked(await _read_body(reply, reader))
    return None if reply.get("content-length") else await reader.read()


def _reset(answer: asyncio.StreamWriter) -> None:
    """End a connection by a TCP reset."""
    answer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    answer.transport.abort()


class _Gone(Exception):  # noqa: N818 - not an error: a fault or the client ends the connection
    """The connection ends."""


class _Proxy:
    def __init__(self, server: str, key: str, secret: str) -> None:
        parts = urlsplit(server)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._key, self._secret = key, secret
        self.behave({"faults": [], "seed": 0, "latency_s": 0.0, "bytes_per_s": None})
        self._link_is_free_at = 0.0

    def behave(self, command: dict[str, Any]) -> None:
        self._faults = [Fault(**each) for each in command["faults"]]
        self._matched = [0] * len(self._faults)
        self._broken = [0] * len(self._faults)
        self._random = random.Random(command["seed"])
        self._latency_s: float = command["latency_s"]
        self._bytes_per_s: float | None = command["bytes_per_s"]
        self.log: list[dict[str, Any]] = []

    async def serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """Serve one client connection."""
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                upstream = await self._exchange(client, answer, upstream)
        except (_Gone, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            answer.close()
            if upstream is not None:
                upstream[1].close()

    async def _exchange(
        self,
        client: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Serve one request; return the connection to the server if it can be reused."""
        head = await _Head.read(client)
        if head.get("expect"):
            answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _read_body(head, client)
        method, (path, _, query) = head.line[0], head.line[1].partition("?")
        entry = asdict(Request(method, path, query, head.get("range"), head.get("if-match")))
        self.log.append(entry)
        fault = entry["fault"] = self._draw(method, head.line[1])
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        if fault in {"stall at once", "cut"}:
            await self._ignore(fault, client, answer)
        if fault in _ERRORS:
            await self._refuse(fault, method, answer, entry)
            return upstream
        if fault == "ignore range":
            head, fault = self._for_whole_object(head), ""
        message = head.encode("expect", "connection") + body
        reader, writer = upstream or await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        try:
            writer.write(message)
            reply = await _Head.read(reader)
        except (OSError, asyncio.IncompleteReadError):
            if upstream is None:
                raise
            # The server had closed the idle connection: try again on a new one.
            writer.close()
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
            writer.write(message)
            reply = await _Head.read(reader)
        entry["status"] = int(reply.line[1])
        try:
            await self._pass_on(method, reply, reader, client, answer, fault, entry)
        except BaseException:
            writer.close()
            raise
        if reply.get("connection").lower() == "close" or reply.line[0] == "HTTP/1.0":
            writer.close()
            return None
        return reader, writer

    async def _pass_on(
        self,
        method: str,
        reply: _Head,
        reader: asyncio.StreamReader,
        client: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
        fault: str,
        entry: dict[str, Any],
    ) -> None:
        if fault == "lost":
            _reset(answer)
            raise _Gone
        reply.line[0] = "HTTP/1.1"
        if method == "HEAD" or entry["status"] in {204, 304}:
            answer.write(reply.encode(*_HOP_BY_HOP))
            await answer.drain()
            return
        buffered = await _body_of_unknown_length(reply, reader)
        length = int(reply.get("content-length")) if buffered is None else len(buffered)
        stop = length // 2 if fault in {"drop", "reset", "short", "stall"} else length
        claimed = stop if fault == "short" else length
        added = {"Content_Length": str(claimed)}
        part = re.fullmatch(r"bytes (\d+)-\d+/(.+)", reply.get("content-range"))
        if part:
            added["Content_Range"] = f"bytes {part[1]}-{int(part[1]) + claimed - 1}/{part[2]}"
        answer.write(reply.encode(*_HOP_BY_HOP, "content-length", "content-range", **added))
        while entry["body_bytes"] < stop:
            num_bytes = min(_CHUNK_BYTES, stop - entry["body_bytes"])
            at = entry["body_bytes"]
            data = await reader.read(num_bytes) if buffered is None else buffered[at : at + num_bytes]
            if not data:
                raise _Gone
            await self._wait_for_bandwidth(len(data))
            entry["body_bytes"] += len(data)
            answer.write(data)
            await answer.drain()
        if fault == "stall":
            await self._stall(client)
        if fault == "reset":
            _reset(answer)
        if fault in {"drop", "reset"}:
            raise _Gone
        if buffered is None and stop < length:
            await reader.readexactly(length - stop)

    async def _ignore(self, fault: str, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """End a request without passing it on."""
        if fault == "cut":
            _reset(answer)
            raise _Gone
        await self._stall(client)

    async def _refuse(self, fault: str, method: str, answer: asyncio.StreamWriter, entry: dict[str, Any]) -> None:
        status, reason, code, text = _ERRORS[fault]
        xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{text}</Message></Error>'
        head = _Head(["HTTP/1.1", str(status), reason])
        entry["status"], entry["body_bytes"] = status, 0 if method == "HEAD" else len(xml)
        message = head.encode(Content_Type="application/xml", Content_Length=str(len(xml)))
        answer.write(message + (b"" if method == "HEAD" else xml.encode()))
        await answer.drain()

    async def _stall(self, client: asyncio.StreamReader) -> None:
        """Wait until the client closes the connection."""
        await client.read(1)
        raise _Gone

    async def _wait_for_bandwidth(self, num_bytes: int) -> None:
        if self._bytes_per_s is None:
            return
        now = asyncio.get_running_loop().time()
        self._link_is_free_at = max(now, self._link_is_free_at) + num_bytes / self._bytes_per_s
        await asyncio.sleep(self._link_is_free_at - now)

    def _draw(self, method: str, target: str) -> str:
        for index, fault in enumerate(self._faults):
            if fault.method not in {"", method} or not re.search(fault.path, target):
                continue
            self._matched[index] += 1
            if self._matched[index] <= fault.skip or self._broken[index] == fault.times:
                continue
            if self._random.random() < fault.probability:
                self._broken[index] += 1
                return fault.kind
        return ""

    def _for_whole_object(self, head: _Head) -> _Head:
        """Return the same request without Range, signed again because the signature covered it."""
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415 - takes half a second, and other faults don't need it
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415

        request = AWSRequest("GET", f"http://{head.get('host')}{head.line[1]}")
        request.context["payload_signing_enabled"] = False
        S3SigV4Auth(Credentials(self._key, self._secret), "s3", "us-east-1").add_auth(request)
        return _Head(list(head.line), [("Host", head.get("host")), *request.headers.items()])


async def _main() -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    proxy = _Proxy(**json.loads(await commands.readline()))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20)
    host, port = server.sockets[0].getsockname()
    print(json.dumps({"endpoint": f"http://{host}:{port}"}), flush=True)
    while line := await commands.readline():
        command = json.loads(line)
        if command:
            proxy.behave(command)
        print(json.dumps([] if command else proxy.log), flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main())
    os._exit(0)
