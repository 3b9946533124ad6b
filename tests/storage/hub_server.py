"""A server that speaks the protocol of the Hugging Face Hub, and a server of content that it redirects to.

They run in one process of their own, so that the tests may fork, which ends when its input is closed. Repositories are
made of local folders; small files are served by the Hub itself, large ones by the server of content, for signed URLs.
"""
# ruff: noqa: T201 - it communicates with its parent process

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE_BYTES = 2_000
"""Files from this size on are on the server of content."""
PAGE = 1_000
TOKEN = "hf_" + "Canary4711" * 3 + "abcd"
"""The token of an account that has access to everything."""
_ROUTE = re.compile(r"/api/datasets/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info)/(?P<rest>.*))?")
_FILE = re.compile(r"/(?:datasets|api/resolve-cache/datasets)/(?P<repo>[^/]+/[^/]+)/(?:resolve/)?(?P<rest>.*)")
_REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 429: "Too Many Requests", 503: "Unavailable"}


@dataclass
class Repository:
    """A repository: its commits, and which of them each branch is."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    access: str = "public"
    """"public", "private" or "gated"."""


class World:
    """What both servers know."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []
        self.signature = 0
        self.lock = threading.Lock()
        self.hub = self.content = ""

    def do(self, command: dict[str, Any]) -> Any:
        """Carry out a command of the tests."""
        with self.lock:
            if command["do"] == "commit":
                repository = self.repositories.setdefault(command["repo"], Repository())
                folder = Path(command["folder"])
                paths = sorted(path for path in folder.rglob("*") if path.is_file())
                files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
                digest = hashlib.sha1(str(len(repository.commits)).encode())
                for name, data in files.items():
                    digest.update(name.encode() + data)
                repository.commits[digest.hexdigest()] = files
                repository.branches[command["branch"]] = digest.hexdigest()
                repository.access = command["access"]
                return digest.hexdigest()
            if command["do"] == "faults":
                self.faults = command["faults"]
            elif command["do"] == "expire":
                self.signature += 1
            elif command["do"] == "requests":
                found, self.requests = self.requests, []
                return found
            return None

    def fault_for(self, line: str) -> dict[str, Any] | None:
        """Return the fault that hits a request, and count it."""
        with self.lock:
            for fault in self.faults:
                if fault["times"] > 0 and re.search(fault["match"], line):
                    fault["times"] -= 1
                    return fault
        return None


WORLD = World()


class Handler(BaseHTTPRequestHandler):
    """What both servers have in common."""

    protocol_version = "HTTP/1.1"
    server_name = ""

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/_tests":
            self.reply(200, json.dumps(WORLD.do(json.loads(body))).encode())
        else:
            self.body = body
            self.do_GET()

    def do_GET(self) -> None:
        line = f"{self.server_name} {self.command} {self.path}"
        facts = {"range": self.headers["range"], "token": self.headers["authorization"]}
        with WORLD.lock:
            WORLD.requests.append({"line": line, **facts})
        fault = WORLD.fault_for(line)
        if fault is None:
            self.answer()
        elif fault["kind"] in {"cut", "ignore range"}:
            self.fault = fault["kind"]
            self.answer()
        elif fault["kind"] == "lost":
            self.close_connection = True
        else:
            text = fault.get("text", "").replace("{token}", self.headers["authorization"] or "")
            self.refuse(int(fault["kind"]), fault.get("code", ""), text, fault.get("headers", {}))

    def answer(self) -> None:
        """Answer a request without a fault."""
        raise NotImplementedError

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a response; a body may be cut off."""
        self.send_response(status, _REASONS.get(status))
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if getattr(self, "fault", "") == "cut":
            body, self.close_connection = body[: len(body) // 2], True
        self.fault = ""
        self.wfile.write(body)

    def refuse(self, status: int, code: str, text: str, headers: dict[str, str] | None = None) -> None:
        """Send an error as the Hub does."""
        given = {"x-error-code": code, "x-error-message": text} if code else {}
        self.reply(status, json.dumps({"error": text}).encode(), {**given, **(headers or {})})

    def reply_range(self, data: bytes, headers: dict[str, str]) -> None:
        """Send the requested range of a file."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["range"] or "")
        if found is None or getattr(self, "fault", "") == "ignore range":
            self.reply(200, data, headers)
            return
        start, stop = int(found[1]), min(int(found[2]) + 1, len(data))
        if start >= len(data):
            self.reply(416)
            return
        self.reply(206, data[start:stop], {**headers, "content-range": f"bytes {start}-{stop - 1}/{len(data)}"})


class Hub(Handler):
    """The Hub: facts about repositories, listings, small files, and redirects to large ones."""

    server_name = "hub"

    def answer(self) -> None:
        url = urlsplit(self.path)
        found = _ROUTE.fullmatch(url.path) or _FILE.fullmatch(url.path)
        if found is None:
            self.refuse(404, "", "Not Found")
            return
        repository = WORLD.repositories.get(unquote(found["repo"]))
        is_known = self.headers["authorization"] == f"Bearer {TOKEN}"
        if repository is None or (repository.access == "private" and not is_known):
            self.refuse(404 if is_known else 401, "RepoNotFound", "Repository not found")
            return
        is_api = found.re is _ROUTE
        if repository.access == "gated" and not is_known and not (is_api and found["what"] != "tree"):
            text = f"Access to dataset {found['repo']} is restricted."
            self.refuse(403 if self.headers["authorization"] else 401, "GatedRepo", text)
            return
        revision, _, rest = (found["rest"] or "main").partition("/")
        revision = unquote(revision)
        commit = repository.branches.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif not is_api:
            self._file(found["repo"], commit, unquote(rest), files)
        elif found["what"] == "tree":
            self._tree(url, unquote(rest).strip("/"), files)
        else:
            siblings = [{"rfilename": name} for name in files]
            self.reply(200, json.dumps({"id": found["repo"], "sha": commit, "siblings": siblings}).encode())

    def _tree(self, url: Any, folder: str, files: dict[str, bytes]) -> None:
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        is_recursive, prefix = query.get("recursive", "").lower() == "true", folder and f"{folder}/"
        entries: dict[str, dict[str, Any]] = {}
        for name, data in files.items():
            if not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) if is_recursive else min(2, len(parts))):
                above = prefix + "/".join(parts[:depth])
                entries[above] = {"type": "directory", "oid": _oid(above.encode()), "size": 0, "path": above}
            if is_recursive or len(parts) == 1:
                entries[name] = {"type": "file", "oid": _oid(data), "size": len(data), "path": name}
                if len(data) >= LARGE_BYTES:
                    digest = hashlib.sha256(data).hexdigest()
                    entries[name]["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        if folder and not entries:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        start = int(query.get("cursor", 0))
        listed = [entries[name] for name in sorted(entries)]
        headers = {}
        if start + PAGE < len(listed):
            cursor = f"recursive={query.get('recursive', '')}&cursor={start + PAGE}"
            headers["link"] = f'<{WORLD.hub}{url.path}?{cursor}>; rel="next"'
        self.reply(200, json.dumps(listed[start : start + PAGE]).encode(), headers)

    def _file(self, repo: str, commit: str, name: str, files: dict[str, bytes]) -> None:
        data = files.get(name)
        if data is None:
            self.refuse(404, "EntryNotFound", f"{name} does not exist")
            return
        headers = {"x-repo-commit": commit, "etag": f'"{_oid(data)}"'}
        if len(data) >= LARGE_BYTES:
            path = quote(f"/{repo}/{commit}/{name}")
            location = f"{WORLD.content}{path}?X-Signature=secret-{WORLD.signature}"
            self.reply(302, b"", {**headers, "location": location, "x-linked-size": str(len(data))})
        elif "/resolve/" in self.path:
            self.reply(307, b"", {**headers, "location": quote(f"/api/resolve-cache/datasets/{repo}/{commit}/{name}")})
        else:
            self.reply_range(data, headers)


class Content(Handler):
    """The server of large files, which knows no tokens but signatures."""

    server_name = "content"

    def answer(self) -> None:
        url = urlsplit(self.path)
        if self.headers["authorization"]:
            self.reply(400, b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism</Message></Error>")
        elif parse_qs(url.query).get("X-Signature") != [f"secret-{WORLD.signature}"]:
            self.reply(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        else:
            owner, name, commit, path = unquote(url.path).lstrip("/").split("/", 3)
            self.reply_range(WORLD.repositories[f"{owner}/{name}"].commits[commit][path], {})


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob " + data).hexdigest()


def main() -> None:
    """Run both servers until the input is closed."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), each) for each in (Hub, Content)]
    WORLD.hub, WORLD.content = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"endpoint": WORLD.hub}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
