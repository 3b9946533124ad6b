"""Starts Ceph's S3 server on loopback, with all data in memory: a real server for tests and benchmarks.

`python scripts/ceph_rgw.py` prints the endpoint and the keys of a user, and runs until Ctrl-C. It leaves nothing
behind. It needs the Debian packages radosgw, ceph-mon, ceph-osd and ceph-common; `--install` installs them (as root).
"""
# ruff: noqa: INP001 - scripts are not a package
# ruff: noqa: T201 - it prints for the user
# ruff: noqa: S603 - it starts installed Debian programs with fixed arguments

from __future__ import annotations

import argparse
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool")
INSTALL_S = 120.0
START_S = 60.0
MEMORY_BYTES = 4 << 30
_PR_SET_PDEATHSIG = 1

CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port},v1:127.0.0.1:{old_mon_port}]
mon initial members = a
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
pid file = {folder}/$name.pid
crash dir = {folder}
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 500
mon data avail crit = 1
osd objectstore = memstore
memstore device bytes = {memory_bytes}
osd class load list = *
osd class default list = *
[mon]
mon data = {folder}/mon
[osd]
osd data = {folder}/osd
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw dns name = 127.0.0.1
rgw data = {folder}/rgw
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the server and wait until it should stop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--install", action="store_true", help="only install the Debian packages, unless they are installed"
    )
    parser.add_argument("--port", type=int, default=0, help="port of the S3 server; 0: any free port")
    parser.add_argument("--json", action="store_true", help="print endpoint and keys as one line of JSON")
    parser.add_argument("--until-stdin-closes", action="store_true", help="stop when the parent program exits")
    options = parser.parse_args(arguments)
    if options.install:
        install()
        return
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        _give_up(
            f"{missing[0]} is not installed: {sys.executable} {sys.argv[0]} --install, as root on Debian or Ubuntu"
        )
    # Exit normally on a signal, so that the daemons and their data are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder, _running(Path(folder), options.port) as server:
        if options.json:
            print(json.dumps(server), flush=True)
        else:
            print("".join(f"{name:<10} {value}\n" for name, value in server.items()) + "stop with Ctrl-C", flush=True)
        try:
            if options.until_stdin_closes:
                sys.stdin.read()
            else:
                signal.pause()
        except KeyboardInterrupt:
            pass


def install() -> None:
    """Install the Debian packages, or exit with the reason why that is impossible."""
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if os.geteuid() != 0:
        _give_up(f"only root can install {' '.join(PACKAGES)}")
    if shutil.which("apt-get") is None:
        _give_up(f"apt-get is missing: can't install {' '.join(PACKAGES)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    until = time.monotonic() + INSTALL_S
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
    ):
        try:
            left_s = max(0.0, until - time.monotonic())
            result = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=left_s, check=False
            )
        except subprocess.TimeoutExpired:
            _give_up(f"{' '.join(command)}: not finished within {INSTALL_S:.0f} s")
        if result.returncode:
            _give_up(f"{' '.join(command)}: {result.stderr.strip()}")


@contextmanager
def _running(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """Run monitor, object store and gateway; yields the endpoint and the keys of a user."""
    mon_port, old_mon_port, free_port = _free_ports(3)
    port = port or free_port
    fsid = str(uuid.uuid4())
    configuration = folder / "ceph.conf"
    configuration.write_text(
        CONFIGURATION.format(
            fsid=fsid,
            folder=folder,
            mon_port=mon_port,
            old_mon_port=old_mon_port,
            port=port,
            memory_bytes=MEMORY_BYTES,
        )
    )
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    daemons: list[subprocess.Popen[bytes]] = []

    def run(*command: str) -> str:
        return _run([command[0], "-c", str(configuration), *command[1:]], folder)

    def start(*command: str) -> None:
        with (folder / f"{command[0]}.out").open("wb") as output:
            daemons.append(
                subprocess.Popen(
                    [command[0], "-c", str(configuration), "-f", *command[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
                )
            )

    try:
        _make_keys(folder)
        addresses = f"[v2:127.0.0.1:{mon_port},v1:127.0.0.1:{old_mon_port}]"
        monmap = str(folder / "monmap")
        _run(["monmaptool", "--create", "--addv", "a", addresses, "--fsid", fsid, monmap], folder)
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", str(folder / "keyring"))
        start("ceph-mon", "-i", "a")
        run("ceph", "--connect-timeout", str(int(START_S)), "osd", "create")
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(uuid.uuid4()))
        start("ceph-osd", "-i", "0")
        start("radosgw", "-n", "client.rgw")
        _wait_for(port, daemons, folder)
        key, secret = secrets.token_hex(10).upper(), secrets.token_hex(20)
        user = [
            "user",
            "create",
            "--uid=laneway",
            "--display-name=laneway",
            f"--access-key={key}",
            f"--secret={secret}",
        ]
        run("radosgw-admin", "-n", "client.rgw", *user)
        yield {"endpoint": f"http://127.0.0.1:{port}", "key": key, "secret": secret}
    finally:
        # No clean shutdown is needed: all state is in memory and in the folder.
        for daemon in daemons:
            daemon.kill()
        for daemon in daemons:
            daemon.wait()


def _make_keys(folder: Path) -> None:
    keyring = str(folder / "keyring")
    allow_all = [
        "--cap",
        "mon",
        "allow *",
        "--cap",
        "osd",
        "allow *",
        "--cap",
        "mgr",
        "allow *",
        "--cap",
        "mds",
        "allow *",
    ]
    _run(["ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"], folder)
    for name in ("client.admin", "client.rgw", "osd.0"):
        _run(["ceph-authtool", keyring, "--gen-key", "-n", name, *allow_all], folder)


def _run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=START_S, check=False)
    if result.returncode:
        _give_up(f"{command[0]} {command[-1]}: {result.stderr.strip()}")
    return result.stdout


def _wait_for(port: int, daemons: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        ended = [daemon for daemon in daemons if daemon.poll() is not None]
        if ended:
            name = str(ended[0].args[0]) if isinstance(ended[0].args, list) else "a daemon"
            _give_up(f"{name} ended with {ended[0].returncode}: {(folder / f'{name}.out').read_text()[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    _give_up(f"the S3 server did not start within {START_S:.0f} s")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _give_up(reason: str) -> NoReturn:
    print(f"ceph_rgw: {reason}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
