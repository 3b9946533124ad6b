"""Real S3 servers on loopback, each in its own process, which ends when the tests end for any reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.config
import botocore.session

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
CEPH_RGW = HERE.parent.parent / "scripts" / "ceph_rgw.py"
REGION = "us-east-1"
_ALLOW_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
_UPLOADS = 8


@dataclass(frozen=True, repr=False)
class S3Server:
    """A running server and the keys of one user. It has no repr, which would show the keys."""

    name: str
    endpoint: str
    key: str
    secret: str
    process: subprocess.Popen[str]

    def options(self, endpoint: str | None = None, **more: Any) -> dict[str, Any]:
        """Return storage options for s3fs: short timeouts, few retries.

        Args:
            endpoint: A proxy in front of the server; None: the server itself.
            more: Options that override these.
        """
        return {
            "key": self.key,
            "secret": self.secret,
            "client_kwargs": {"endpoint_url": endpoint or self.endpoint, "region_name": REGION},
            "config_kwargs": {
                "retries": {"mode": "standard", "max_attempts": 2},
                "connect_timeout": 1,
                "read_timeout": 1,
            },
            **more,
        }

    @cached_property
    def client(self) -> Any:
        """A botocore client that bypasses the proxy."""
        return _client("s3", self.endpoint, self.key, self.secret)

    def temporary_keys(self) -> dict[str, str]:
        """Return storage options with temporary keys and a token from moto's STS."""
        iam, sts = (_client(service, self.endpoint, self.key, self.secret) for service in ("iam", "sts"))
        role = iam.create_role(RoleName="tests", AssumeRolePolicyDocument=json.dumps(_ALLOW_ALL))["Role"]
        iam.put_role_policy(RoleName="tests", PolicyName="all", PolicyDocument=json.dumps(_ALLOW_ALL))
        credentials = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="tests")["Credentials"]
        return {
            "key": credentials["AccessKeyId"],
            "secret": credentials["SecretAccessKey"],
            "token": credentials["SessionToken"],
        }

    def put(self, bucket: str, name: str, data: bytes) -> None:
        """Store an object."""
        self.client.put_object(Bucket=bucket, Key=name, Body=data)

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Store all files of a folder as objects with a common prefix."""
        if self.name == "moto":
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            command = {"folder": str(folder), "bucket": bucket, "prefix": prefix}
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "{}\n", "moto could not store the objects"
            return
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        with ThreadPoolExecutor(_UPLOADS) as pool:
            names = [prefix + path.relative_to(folder).as_posix() for path in paths]
            for _ in pool.map(self.put, [bucket] * len(paths), names, [path.read_bytes() for path in paths]):
                pass


@contextmanager
def moto(bucket: str) -> Iterator[S3Server]:
    """Run moto with one bucket and one user; it rejects all other keys."""
    # The requests that create the user need no keys: see moto's documentation of IAM-like access control.
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "4"}
    with running_server([sys.executable, str(HERE / "moto_server.py")], environment) as (process, info):
        iam = _client("iam", info["endpoint"], "nobody", "nothing")
        iam.create_user(UserName="tests")
        iam.put_user_policy(UserName="tests", PolicyName="all", PolicyDocument=json.dumps(_ALLOW_ALL))
        keys = iam.create_access_key(UserName="tests")["AccessKey"]
        server = S3Server("moto", info["endpoint"], keys["AccessKeyId"], keys["SecretAccessKey"], process)
        server.client.create_bucket(Bucket=bucket)
        yield server


def why_no_ceph_rgw() -> str:
    """Return the reason why Ceph's server can't run here, or ""."""
    if shutil.which("radosgw") and shutil.which("ceph-osd") and shutil.which("ceph-mon"):
        return ""
    return "Ceph RGW is not installed: `python scripts/ceph_rgw.py --install` does that, as root on Debian or Ubuntu"


@contextmanager
def ceph_rgw(bucket: str) -> Iterator[S3Server]:
    """Run Ceph's S3 server with one bucket and one user."""
    command = [sys.executable, str(CEPH_RGW), "--json", "--until-stdin-closes"]
    with running_server(command, dict(os.environ)) as (process, info):
        server = S3Server("ceph", info["endpoint"], info["key"], info["secret"], process)
        server.client.create_bucket(Bucket=bucket)
        yield server


@contextmanager
def running_server(
    command: list[str], environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run a server that prints a line of JSON when it is ready, and ends when its stdin is closed."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            message = f"{' '.join(command)} ended with {process.wait()} before it was ready"
            raise RuntimeError(message)
        try:
            yield process, json.loads(line)
        finally:
            process.stdin.close()


def _client(service: str, endpoint: str, key: str, secret: str) -> Any:
    return botocore.session.Session().create_client(
        service,
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=botocore.config.Config(max_pool_connections=_UPLOADS),
    )
