"""The command line with real servers, as a process."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from interop.servers import MailServer, PostgreSQL, RedisServer

pytestmark = pytest.mark.parametrize("loop", [(), ("--trio",)], ids=["asyncio", "trio"])


def talk(
    loop: tuple[str, ...],
    address: tuple[str, int],
    said: bytes,
    *options: object,
    end: bool = True,
) -> bytes:
    """Send ``said`` and the end of input; return the output until the server hung up.

    With ``end=False``, the input ends only after that.
    """
    command = [sys.executable, "-m", "anyio_connect", "{}:{}".format(*address), *loop]
    with subprocess.Popen(
        [*command, *map(str, options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            process.stdin.write(said)
            process.stdin.close() if end else process.stdin.flush()
            answer, complaints = process.stdout.read(), process.stderr.read()
        finally:
            watchdog.cancel()
    assert complaints == b""
    assert process.returncode == 0
    return answer


def test_postgres(loop: tuple[str, ...], postgresql: PostgreSQL, cafile: Path) -> None:
    startup = struct.pack("!HH", 3, 0) + f"user\0{postgresql.trusted_user}\0".encode()
    startup += b"database\0postgres\0\0"
    query = b"SELECT 'the answer is ' || 6 * 7\0"
    said = struct.pack("!I", len(startup) + 4) + startup
    said += b"Q" + struct.pack("!I", len(query) + 4) + query
    said += b"X" + struct.pack("!I", 4)
    options = ("--starttls", "postgres", "--cafile", cafile)
    answer = talk(loop, postgresql.address, said, *options)
    assert answer.startswith(b"R\0\0\0\x08\0\0\0\0")  # AuthenticationOk
    assert b"the answer is 42" in answer


def test_smtp(loop: tuple[str, ...], mail_server: MailServer, cafile: Path) -> None:
    said = b"EHLO client.example\r\nQUIT\r\n"
    # A server on asyncio treats our end as the end of both sides, and may drop its answer.
    options = ("--starttls", "smtp", "--cafile", cafile)
    answer = talk(loop, mail_server.smtp, said, *options, end=False)
    lines = answer.splitlines()
    assert lines[0].startswith(b"250")
    assert lines[-1].startswith(b"221 ")
    assert b"STARTTLS" not in answer  # the server knows that TLS is in use already


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
def test_redis(loop: tuple[str, ...], redis_server: RedisServer, cafile: Path, tls: bool) -> None:
    said = b"PING\r\nECHO both\r\nQUIT\r\n"
    answer = (
        talk(loop, redis_server.tls, said, "--tls", "--cafile", cafile)
        if tls
        else talk(loop, redis_server.plain, said)
    )
    assert answer == b"+PONG\r\n$4\r\nboth\r\n+OK\r\n"
