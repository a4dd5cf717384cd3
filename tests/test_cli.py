"""The command line, run in its own process against a server of plain blocking sockets."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from support.peers import full_backlog, refusing_address
from support.servers import echo, serving
from support.tls_peers import Server

pytestmark = pytest.mark.slow  # each test starts a process or two

COMMAND = [sys.executable, "-m", "anyio_connect"]
TIMEOUT = 60

backends = pytest.mark.parametrize("backend", [[], ["--trio"]], ids=["asyncio", "trio"])


def run(
    *arguments: str, data: bytes = b"", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=data,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error", **(environment or {})},
    )


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        guard = threading.Timer(TIMEOUT, process.kill)
        guard.start()
        try:
            yield process
        finally:
            process.kill()
            guard.cancel()
            guard.join()


@backends
def test_echo(backend: list[str]) -> None:
    data = bytes(range(256)) * 10
    with serving(echo) as address:
        ran = run(address, *backend, data=data)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, data, b"")


@backends
def test_the_server_sees_our_end_and_its_answer_is_printed(backend: list[str]) -> None:
    def answer(connection: socket.socket) -> None:
        received = b""
        while data := connection.recv(65536):
            received += data
        connection.sendall(b"you sent %d bytes" % len(received))

    with serving(answer) as address:
        ran = run(address, *backend, data=b"12345")
    assert (ran.returncode, ran.stdout) == (0, b"you sent 5 bytes")


@backends
def test_the_peer_ends_while_standard_input_is_open(backend: list[str]) -> None:
    with serving(lambda c: c.sendall(b"bye")) as address, running(address, *backend) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"bye"
        assert process.wait(TIMEOUT) == 0


@backends
def test_half_open_goes_on_sending(backend: list[str]) -> None:
    received = bytearray()
    done = threading.Event()

    def end_first(connection: socket.socket) -> None:
        connection.sendall(b"only reading now")
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            received.extend(data)
        done.set()

    with serving(end_first) as address, running(address, "--half-open", *backend) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(16) == b"only reading now"
        # There is no event to wait for: the command shows only by going on that it saw the end.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.stdin.write(b"late but welcome")
        process.stdin.close()
        assert done.wait(TIMEOUT)
        assert process.wait(TIMEOUT) == 0
    assert received == b"late but welcome"


@backends
def test_output_is_prompt(backend: list[str]) -> None:
    with serving(echo) as address, running(address, *backend) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(b"%d" % number)
            process.stdin.flush()
            assert process.stdout.read(1) == b"%d" % number
        process.stdin.close()
        assert process.wait(TIMEOUT) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("mebibytes", [8, 96])
@backends
def test_a_file_goes_through_in_constant_memory(
    backend: list[str], mebibytes: int, tmp_path: Path
) -> None:
    block = os.urandom(1 << 20)
    source, copy = tmp_path / "source", tmp_path / "copy"
    with source.open("wb") as file:
        for number in range(mebibytes):
            file.write(bytes([number]) + block[1:])
    program = (
        "import runpy, sys\n"
        "sys.argv[0] = 'anyio_connect'\n"
        "try:\n"
        "    runpy.run_module('anyio_connect', run_name='__main__')\n"
        "finally:\n"
        "    print(*open('/proc/self/status'), file=sys.stderr)\n"
    )
    with serving(echo) as address, source.open("rb") as stdin, copy.open("wb") as stdout:
        ran = subprocess.run(
            [sys.executable, "-c", program, address, *backend],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT * 2,
            check=True,
        )
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (source, copy)]
    assert digests[0] == digests[1]
    # Not getrusage(): its peak is inherited from the process that forked this one.
    (peak,) = re.findall(rb"VmHWM:\s+(\d+) kB", ran.stderr)
    assert int(peak) < 80 * 1024, "memory grows with the size of the file"


def test_refused() -> None:
    ran = run("{}:{}".format(*refusing_address()))
    assert ran.returncode == 1
    assert ran.stdout == b""
    (line,) = ran.stderr.decode().splitlines()
    assert line.startswith("anyio_connect: cannot connect to 127.0.0.1:")
    assert "connection refused" in line


def test_the_notes_of_an_error_are_printed_too() -> None:
    ran = run("host.invalid:80")
    assert ran.returncode == 1
    (line,) = ran.stderr.decode().splitlines()
    assert "cannot resolve 'host.invalid'" in line
    assert "HTTP client" in line


@backends
def test_reset(backend: list[str]) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"so far")
        connection.recv(6)  # until the client has read that, and answered
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with serving(reset) as address, running(address, *backend) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(6) == b"so far"
        process.stdin.write(b"go on!")
        process.stdin.flush()
        (line,) = process.stderr.read().decode().splitlines()
        assert line.startswith("anyio_connect: the connection broke while receiving: ")
        assert process.wait(TIMEOUT) == 1


def test_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as full, full_backlog(full):
        ran = run("{}:{}".format(*full.getsockname()), "--timeout", "0.05")
    assert ran.returncode == 1
    assert b"no connection within 0.05 seconds" in ran.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["--nonsense", "h:1"], ["h:1", "extra"], ["h:1", "--timeout", "soon"]]
)
def test_usage(arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.returncode == 2
    assert b"usage: " in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["host"], "bad address 'host': it has no port"),
        (["h:1", "--timeout", "0"], "bad value for connect_timeout: 0.0"),
    ],
)
def test_bad_values(arguments: list[str], message: str) -> None:
    ran = run(*arguments)
    assert ran.returncode == 1
    assert ran.stderr.decode().startswith(f"anyio_connect: {message}")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_information(option: str) -> None:
    ran = run(option)
    assert ran.returncode == 0
    assert b"anyio_connect" in ran.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
@backends
def test_the_output_is_closed_by_its_reader(backend: list[str]) -> None:
    with serving(echo) as address, running(address, *backend) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        process.stdout.close()
        process.stdin.write(b"y")
        process.stdin.flush()
        assert process.wait(TIMEOUT) == -signal.SIGPIPE
        assert process.stderr.read() == b""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@backends
def test_interrupted(backend: list[str]) -> None:
    with serving(echo) as address, running(address, *backend) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == -signal.SIGINT
        assert process.stderr.read() == b""


def redirected(redirection: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        f"'{sys.executable}' -m anyio_connect {' '.join(arguments)} {redirection}",
        shell=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )


posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells and descriptors")


@posix
@pytest.mark.parametrize("redirection", ["< /dev/null", "<&-"])
@backends
def test_no_input(backend: list[str], redirection: str) -> None:
    with serving(lambda c: c.sendall(b"%d" % len(c.recv(1)))) as address:
        ran = redirected(redirection, address, *backend)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"0", b"")


@posix
@pytest.mark.parametrize(
    "redirection",
    [
        ">&-",
        "<&- >&-",  # a socket may get the number of standard output, and must not be written to
        pytest.param(
            "> /dev/full",
            marks=pytest.mark.skipif(
                not Path("/dev/full").exists(), reason="this system has no /dev/full"
            ),
        ),
    ],
)
@backends
def test_the_output_cannot_be_written(backend: list[str], redirection: str) -> None:
    with serving(lambda c: c.sendall(b"anything")) as address:
        ran = redirected(redirection, address, *backend)
    assert ran.returncode == 1
    (line,) = ran.stderr.decode().splitlines()
    assert line.startswith("anyio_connect: cannot write standard output: ")


@posix
@backends
def test_the_input_cannot_be_read(backend: list[str], tmp_path: Path) -> None:
    ends: list[object] = []

    def listen(connection: socket.socket) -> None:
        try:
            ends.append(connection.recv(1))
        except OSError as exc:
            ends.append(type(exc))

    with serving(listen) as address:
        ran = redirected(f"0> '{tmp_path / 'only-written'}'", address, *backend)
    assert ran.returncode == 1
    (line,) = ran.stderr.decode().splitlines()
    assert line.startswith("anyio_connect: cannot read standard input: ")
    assert ends == [ConnectionResetError], "the peer takes incomplete data for all of it"


@posix
def test_errors_do_not_go_to_standard_output() -> None:
    ran = redirected("2>&-", "{}:{}".format(*refusing_address()))
    assert (ran.returncode, ran.stdout) == (1, b"")


@posix
@backends
def test_the_peer_ends_while_a_terminal_is_open(backend: list[str]) -> None:
    import pty  # not on Windows

    master, terminal = pty.openpty()
    try:
        with serving(lambda c: c.sendall(b"bye")) as address:
            ran = subprocess.run(
                [*COMMAND, address, *backend],
                stdin=terminal,
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
            )
    finally:
        os.close(master)
        os.close(terminal)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"bye", b"")


@backends
def test_a_read_that_cannot_be_stopped_does_not_delay_the_exit(backend: list[str]) -> None:
    program = (
        "import sys\n"
        "import anyio_connect.__main__ as cli\n"
        "cli._can_wait_for_input = lambda: False\n"
        "sys.exit(cli.main())\n"
    )
    with (
        serving(lambda c: c.sendall(b"bye")) as address,
        subprocess.Popen(
            [sys.executable, "-c", program, address, *backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.read() == b"bye"
            assert process.wait(TIMEOUT) == 0
        finally:
            process.kill()


@posix
@backends
def test_non_blocking_output(backend: list[str]) -> None:
    # Any program that shares the pipe may have made it non-blocking.
    count = 1 << 20
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with (
        serving(lambda c: c.sendall(bytes(count))) as address,
        subprocess.Popen(
            [*COMMAND, address, *backend],
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
        ) as process,
        os.fdopen(reader, "rb", buffering=0) as output,
    ):
        os.close(writer)
        # Slowly at first: the pipe is full after the first write, so the next one fails.
        received = sum(len(output.read(1)) for _ in range(1000))
        while data := output.read(65536):
            received += len(data)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(TIMEOUT) == 0
    assert received == count


@backends
def test_demo(backend: list[str]) -> None:
    ran = run("demo", *backend)
    assert (ran.returncode, ran.stderr) == (0, b"")
    out = ran.stdout.decode()
    for line in (
        "b'hello yourself'",
        "EndOfStream",
        "<SocketFuture done: None>",
        "BrokenError: the connection broke while receiving",
        "RefusedError: cannot connect to 127.0.0.1:",
        "InvalidAddressError: bad address 'http://example.com/'",
    ):
        assert line in out


@posix
def test_the_demo_writes_to_a_closed_pipe() -> None:
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "",
    }  # so that everything is written at the end
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = subprocess.run(
            [*COMMAND, "demo"],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT,
            check=False,
            env=environment,
        )
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (-signal.SIGPIPE, b"")


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def cafile(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


#: For servers that answer only after our end.
AT_ONCE = ["--end-after", "0"]


def secured(
    authority: trustme.CA, handler: Callable[[ssl.SSLSocket], None]
) -> Callable[[socket.socket], None]:
    """Run ``handler`` over TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            handler(secure)

    return handle


def over_tls(
    authority: trustme.CA, *, name: str = "127.0.0.1", alpn: str | None = None, clear: bytes = b""
) -> Callable[[socket.socket], None]:
    """An echo over TLS, which sends everything back after the client's end."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    if alpn:
        context.set_alpn_protocols([alpn])

    def handler(connection: socket.socket) -> None:
        if clear:
            connection.sendall(b"220 hello\r\n")
            for reply in (b"250-first\r\n250 STARTTLS\r\n", clear):
                while not connection.recv(1000).endswith(b"\r\n"):
                    pass
                connection.sendall(reply)
        with context.wrap_socket(connection, server_side=True) as secure:
            received = (secure.selected_alpn_protocol() or "").encode()
            while data := secure.recv(65536):
                received += data
            secure.sendall(received)
            with suppress(OSError):
                secure.unwrap()

    return handler


@backends
def test_tls_half_closes(backend: list[str], authority: trustme.CA, cafile: str) -> None:
    data = bytes(range(256)) * 1000
    with serving(over_tls(authority)) as address:
        ran = run(address, "--tls", "--cafile", cafile, *backend, *AT_ONCE, data=data)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, data, b"")


def answers_and_ends(secure: ssl.SSLSocket) -> None:
    """Many servers do this: they cannot half-close, and do not answer after an early end."""
    assert secure.recv(100) == b"request"
    secure.settimeout(0.5)
    with suppress(TimeoutError):
        if not secure.recv(100):
            return
    secure.sendall(b"the answer")
    secure.unwrap()


@backends
def test_over_tls_the_command_waits_for_the_answer_before_it_ends(
    backend: list[str], authority: trustme.CA, cafile: str
) -> None:
    with serving(secured(authority, answers_and_ends)) as address:
        ran = run(address, "--tls", "--cafile", cafile, *backend, data=b"request")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"the answer", b"")


def test_with_end_after_inf_only_the_peer_ends(authority: trustme.CA, cafile: str) -> None:
    with serving(secured(authority, answers_and_ends)) as address:
        ran = run(address, "--tls", "--cafile", cafile, "--end-after", "inf", data=b"request")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"the answer", b"")


@backends
def test_over_tls_our_side_ends_after_a_silence(
    backend: list[str], authority: trustme.CA, cafile: str
) -> None:
    """For a server that answers only after our end."""
    with serving(over_tls(authority)) as address:
        ran = run(
            address, "--tls", "--cafile", cafile, "--end-after", "0.2", *backend, data=b"request"
        )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"request", b"")


@backends
def test_half_open_over_tls_ends_at_once_after_the_peer(
    backend: list[str], authority: trustme.CA, cafile: str
) -> None:
    received = bytearray()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def end_first(connection: socket.socket) -> None:
        # Not with ssl.SSLSocket: its unwrap() loses data that the client has sent by then.
        server = Server(context)
        while not server.shake():
            connection.sendall(server.outgoing.read())
            server.incoming.write(connection.recv(65536))
        connection.sendall(server.encrypt(b"only reading now"))
        received.extend(server.decrypt(b""))
        connection.sendall(server.close_notify())
        while not server.ended and (data := connection.recv(65536)):
            received.extend(server.decrypt(data))

    options = ["--tls", "--cafile", cafile, "--half-open", "--end-after", "inf", *backend]
    with serving(end_first) as address:
        ran = run(address, *options, data=b"late but welcome")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"only reading now", b"")
    assert received == b"late but welcome"


@pytest.mark.parametrize("seconds", ["-1", "nan", "soon"])
def test_a_bad_value_of_end_after(seconds: str) -> None:
    ran = run("127.0.0.1:9", "--end-after", seconds)
    assert ran.returncode == 2
    assert b"--end-after" in ran.stderr


def test_a_cafile_does_not_weaken_the_context(tmp_path: Path) -> None:
    """A certificate with only a common name is for no host, even if it is trusted."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "own.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(pem + signed.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    def shake(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True).close()

    for arguments, environment in (
        (["--cafile", str(file)], {}),
        ([], {"SSL_CERT_FILE": str(file)}),
    ):
        with serving(shake) as address:
            port = address.rpartition(":")[2]
            ran = run(f"localhost:{port}", "--tls", *arguments, environment=environment)
        assert ran.returncode == 1
        assert b"its certificate is not for 'localhost'" in ran.stderr


def test_alpn(authority: trustme.CA, cafile: str) -> None:
    with serving(over_tls(authority, alpn="b")) as address:
        ran = run(address, "--tls", "--cafile", cafile, "--alpn", "a", "--alpn", "b", *AT_ONCE)
    assert (ran.returncode, ran.stdout) == (0, b"b")


def test_starttls(authority: trustme.CA, cafile: str) -> None:
    with serving(over_tls(authority, clear=b"220 go ahead\r\n")) as address:
        ran = run(address, "--starttls", "smtp", "--cafile", cafile, *AT_ONCE, data=b"in secret")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"in secret", b"")


@pytest.mark.parametrize(
    ("clear", "message"),
    [
        (b"502 no\r\n", "the server refused STARTTLS: '502 no'"),
        (
            b"220 go ahead\r\n250 injected\r\n",
            "the server sent unencrypted data after it had agreed",
        ),
    ],
)
def test_starttls_fails(authority: trustme.CA, cafile: str, clear: bytes, message: str) -> None:
    with serving(over_tls(authority, clear=clear)) as address:
        ran = run(address, "--starttls", "smtp", "--cafile", cafile, data=b"in secret")
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr.decode().startswith(f"anyio_connect: {message}")


def test_a_certificate_of_an_unknown_authority(authority: trustme.CA) -> None:
    with serving(over_tls(authority)) as address:
        refused = run(address, "--tls")
        taken = run(address, "--tls", "--insecure", *AT_ONCE, data=b"who is there?")
    assert refused.returncode == 1
    assert b"an authority that is not trusted here: " in refused.stderr
    assert refused.stderr.endswith(b"if it should be trusted, name its file with --cafile\n")
    assert taken.returncode == 0
    assert taken.stdout == b"who is there?"
    assert taken.stderr.startswith(b"anyio_connect: WARNING: --insecure: ")


def test_the_wrong_host(authority: trustme.CA, cafile: str) -> None:
    with serving(over_tls(authority, name="other.example")) as address:
        ran = run(address, "--tls", "--cafile", cafile)
    assert ran.returncode == 1
    assert b"not for '127.0.0.1' but for 'other.example'" in ran.stderr


def hangs_up_on_the_first_byte(connection: socket.socket) -> None:
    connection.recv(1)


@backends
def test_the_timeout_limits_how_long_a_peer_may_be_silent_before_tls(backend: list[str]) -> None:
    with serving(hangs_up_on_the_first_byte) as address:  # the client waits for a greeting
        ran = run(address, "--starttls", "smtp", "--timeout", "0.5", *backend)
    assert ran.returncode == 1
    assert ran.stderr.decode() == (
        f"anyio_connect: {address} did not agree to TLS within 0.5 seconds: does it speak smtp?\n"
    )


def test_a_peer_that_hangs_up_on_tls() -> None:
    with serving(hangs_up_on_the_first_byte) as address:
        ran = run(address, "--tls")
    assert ran.returncode == 1
    assert b"or may expect a command first: then use --starttls" in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cafile", "x"],
        ["--cafile", ""],
        ["--insecure"],
        ["--alpn", "x"],
        ["--tls", "--starttls", "smtp"],
        ["--starttls", "gopher"],
    ],
)
def test_tls_usage(arguments: list[str]) -> None:
    ran = run("127.0.0.1:9", *arguments)
    assert ran.returncode == 2


@pytest.mark.parametrize("arguments", [["--tls"], ["--starttls", "smtp"], ["--timeout", "0"]])
def test_the_demo_refuses_other_options(arguments: list[str]) -> None:
    ran = run("demo", *arguments)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert b"the demo takes no option but --trio" in ran.stderr


@pytest.mark.parametrize("name", ["nowhere.pem", ""])
def test_a_cafile_that_does_not_exist(name: str) -> None:
    ran = run("127.0.0.1:9", "--tls", "--cafile", name)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"anyio_connect: bad value for --cafile: {name!r}".encode())


@pytest.mark.parametrize("name", ["", "\N{LATIN SMALL LETTER E WITH ACUTE}", "x" * 256])
@pytest.mark.parametrize("own_context", [True, False])
def test_a_bad_alpn(name: str, own_context: bool) -> None:
    ran = run("127.0.0.1:9", "--tls", "--alpn", name, *["--insecure"] * own_context)
    assert ran.returncode == 1
    *_, line = ran.stderr.decode().splitlines()
    assert line.startswith("anyio_connect: bad value for alpn: ")
    assert line.endswith(" is not a name of 1 to 255 ASCII characters")
