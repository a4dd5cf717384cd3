"""Starts workerd, the runtime of Workers, and runs the client's part of a scenario on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from conformance.certificates import Certificates
from conformance.peer import HOST
from conformance.steps import PATIENCE

#: The environment variables for the directory into which npm has put workerd, and to skip workerd.
WHERE = "ANYIO_CONNECT_WORKERD"
OPT_OUT = "ANYIO_CONNECT_SKIP_CONFORMANCE"


def binary() -> Path:
    """The path of workerd.

    Fails the test if workerd is not found, and skips it if the environment says so.
    """
    if os.environ.get(OPT_OUT):
        pytest.skip(f"{OPT_OUT} skips workerd")
    if sys.platform != "linux":
        pytest.fail(
            "the scripted peer asks the kernel what has arrived, which works only on Linux. "
            f"Set {OPT_OUT}=1 to skip this.",
            pytrace=False,
        )
    found = list(Path(os.environ.get(WHERE, "")).glob("node_modules/@cloudflare/workerd-*/bin/*"))
    if not os.environ.get(WHERE) or not found:
        pytest.fail(
            "workerd was not found. `nox -s conformance` installs and finds it; or npm install "
            f"workerd, and set {WHERE} to the directory; or set {OPT_OUT}=1 to skip this.",
            pytrace=False,
        )
    return found[0]


@contextmanager
def running(directory: Path, certificates: Certificates) -> Iterator[int]:
    """Run workerd with the worker; yield the port on which it accepts scenarios."""
    program = binary()
    for name in ("workerd.capnp", "worker.js"):
        shutil.copy(Path(__file__).with_name(name), directory)
    certificates.authority.cert_pem.write_to_path(str(directory / "authority.pem"))
    reading, writing = os.pipe()
    command = [str(program), "serve", "workerd.capnp", f"--control-fd={writing}"]
    if shutil.which("setpriv"):
        # It stops even if the tests are killed.
        command = ["setpriv", "--pdeathsig=KILL", "--", *command]
    with (directory / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=directory, stdout=output, stderr=output, pass_fds=[writing]
        )
    os.close(writing)
    try:
        with os.fdopen(reading) as control:
            line = control.readline()
            if not line:
                pytest.fail(f"workerd did not start:\n{(directory / 'output').read_text()}")
            yield json.loads(line)["port"]
    finally:
        process.kill()
        process.wait()


class Scenario:
    """One request to the worker: its body has a line for each step, and so has the answer."""

    def __init__(self, http: HTTPConnection) -> None:
        self._http = http
        self._response: HTTPResponse | None = None

    def step(self, **arguments: Any) -> tuple[str, str]:
        line = json.dumps(arguments | arguments.pop("connect")).encode() + b"\n"
        self._http.send(b"%x\r\n%s\r\n" % (len(line), line))
        if self._response is None:
            self._response = self._http.getresponse()
        answer = json.loads(self._response.readline())
        return answer["outcome"], answer.get("detail", "")

    def close(self) -> None:
        """Hang up, which makes the worker close everything that it has open."""
        if self._response is not None:
            self._response.close()
        self._http.close()


@contextmanager
def scenario(port: int) -> Iterator[Scenario]:
    connection = HTTPConnection(HOST, port, timeout=3 * PATIENCE)
    begun = Scenario(connection)
    try:
        connection.putrequest("POST", "/")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        yield begun
    finally:
        begun.close()
