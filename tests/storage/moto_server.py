"""The process in which moto serves S3; it ends when its parent process does.

It reads commands from stdin, a line of JSON each: `{"folder", "bucket", "prefix"}` stores the files of a folder as
objects, without a request for each. moto itself is configured by environment variables.
"""
# ruff: noqa: T201 - it communicates with its parent process

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

ACCOUNT = "123456789012"
"""The account of the keys that moto's IAM creates."""


class QuietHandler(MotoRequestHandler):
    def log_request(self, *_: object) -> None:
        pass


class OneWriterApplication(DomainDispatcherApplication):
    """Stores one object at a time: moto looks whether an object exists, and stores it a while later."""

    _lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return super().__call__(environ, start_response)
        with self._lock:
            return super().__call__(environ, start_response)


def store(folder: str, bucket: str, prefix: str) -> None:
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            name = f"{prefix}{path.relative_to(folder).as_posix()}"
            s3_backends[ACCOUNT]["aws"].put_object(bucket, name, path.read_bytes())


def main() -> None:
    application = OneWriterApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=QuietHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"endpoint": f"http://127.0.0.1:{server.port}"}), flush=True)
    for line in sys.stdin:
        store(**json.loads(line))
        print("{}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
