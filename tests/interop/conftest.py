"""Real servers for the interop tests.

The tests start the servers themselves, on free ports of loopback, and stop them at the end. The
servers only have to be installed. On Debian and Ubuntu:

    apt-get install -y --no-install-recommends postgresql redis-server openssl nodejs \
        tinyproxy microsocks openssh-server mosquitto

aiosmtpd, aiohttp and nats-server come from PyPI, with the other packages that the tests need. The
servers that Debian starts by itself after the installation are not used, and do no harm.

If a server is missing, the tests that need it fail. To skip these tests, set
ANYIO_CONNECT_SKIP_INTEROP to 1, or to the names of some servers, such as "postgresql,node".

Each test module except test_clients.py has a client that shows how to speak the protocol with this
package. test_clients.py uses the clients of other libraries that are in docs/clients.md.
"""

from __future__ import annotations

import getpass
import signal
import ssl
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trustme

from interop import servers
from interop.servers import (
    Broker,
    MailServer,
    OpenSSL,
    PostgreSQL,
    ProxyServer,
    RedisServer,
    SSHServer,
)

HOST = "127.0.0.1"

#: How much of the output of a server is added to the report of a failed test, in characters.
SHOWN = 4000

STARTED_AT = pytest.StashKey[dict[servers.Program, int]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[STARTED_AT] = {server: len(server.output) for server in servers.running}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the servers wrote while a test failed."""
    report = yield
    if report.failed:
        for server in servers.running:
            start = item.stash.get(STARTED_AT, {}).get(server, 0)
            if text := server.output[start:]:
                report.sections.append((f"output of {server.name}", text[-SHOWN:]))
    return report


# --- certificates


@dataclass(frozen=True)
class Certificate:
    """The certificate of a server and its key, each in a PEM file."""

    chain: Path
    key: Path


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """The certificate of a server on loopback."""
    directory = tmp_path_factory.mktemp("certificate")
    issued = authority.issue_cert(HOST, "localhost")
    files = Certificate(directory / "server.pem", directory / "server.key")
    issued.cert_chain_pems[0].write_to_path(str(files.chain))
    issued.private_key_pem.write_to_path(str(files.key))
    return files


@pytest.fixture(scope="session")
def ssl_context(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a client that trusts these servers."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="session")
def cafile(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the certificate of the authority of these servers."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


# --- aiosmtpd


@pytest.fixture(scope="session")
def mail_server(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MailServer]:
    python = servers.need("aiosmtpd", servers.module("aiosmtpd"))
    maildir = tmp_path_factory.mktemp("mail") / "maildir"
    script = Path(__file__).with_name("mail_server.py")
    command = [python, str(script), str(certificate.chain), str(certificate.key), str(maildir)]
    with servers.started("aiosmtpd", command) as server:
        ports = server.wait_for(r"listening on (\d+) (\d+)\n")
        yield MailServer((HOST, int(ports[1])), (HOST, int(ports[2])), maildir)


# --- PostgreSQL


@pytest.fixture(scope="session")
def postgresql(certificate: Certificate) -> Iterator[PostgreSQL]:
    programs = Path(servers.need("postgresql", servers.postgres_programs))
    account = servers.unprivileged()  # PostgreSQL does not run as root
    with servers.private_directory(account) as directory:
        server = PostgreSQL((HOST, 0), directory)
        data = directory / "data"
        password = directory / "password"
        password.write_text(server.password)
        key = directory / "server.key"
        key.touch(0o600)  # PostgreSQL refuses a key that others may read
        key.write_bytes(certificate.key.read_bytes())
        chain = directory / "server.pem"
        chain.write_bytes(certificate.chain.read_bytes())
        hba = directory / "hba.conf"
        hba.write_text(
            f"host    all {server.user}         {HOST}/32 scram-sha-256\n"
            f"hostssl all {server.trusted_user} {HOST}/32 trust\n"
            f"local   all {server.user}                 scram-sha-256\n"
            f"local   all all                           peer\n"
        )
        if account is not None:
            for path in (password, key, chain, hba):
                servers.give(path, account)
        initdb = [
            str(programs / "initdb"),
            f"--pgdata={data}",
            f"--username={server.user}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        ]
        servers.run(initdb, account)
        single = [str(programs / "postgres"), "--single", "-F", "-D", str(data), "postgres"]
        servers.run(single, account, typed=f"CREATE USER {server.trusted_user}\n")
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": directory,
            "hba_file": hba,
            "ssl": "on",
            "ssl_cert_file": chain,
            "ssl_key_file": key,
            "fsync": "off",
            "max_connections": 20,
            "shared_buffers": "16MB",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]

        def command(port: int) -> list[str]:
            return [str(programs / "postgres"), "-D", str(data), f"--port={port}", *options]

        with servers.started_on_free_port(
            "postgresql",
            command,
            "database system is ready to accept connections",
            account=account,
            stop=signal.SIGINT,  # its fast shutdown; SIGTERM would wait for every client
        ) as (_, port):
            yield PostgreSQL((HOST, port), directory / f".s.PGSQL.{port}")


# --- Redis


@pytest.fixture(scope="session")
def redis_server(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    redis = servers.need("redis", servers.program("redis-server"))
    directory = tmp_path_factory.mktemp("redis")
    plain_port = servers.free_port()

    def command(port: int) -> list[str]:
        settings = {
            "bind": HOST,
            "port": plain_port,
            "tls-port": port,
            "tls-cert-file": certificate.chain,
            "tls-key-file": certificate.key,
            "tls-auth-clients": "no",
            "save": "",  # nothing goes to disk
            "dir": directory,
        }
        return [
            redis,
            *(word for name, value in settings.items() for word in (f"--{name}", str(value))),
        ]

    with servers.started_on_free_port("redis", command, "Ready to accept connections") as (
        _,
        port,
    ):
        yield RedisServer((HOST, plain_port), (HOST, port))


# --- aiohttp


@pytest.fixture(scope="session")
def web_server() -> Iterator[tuple[str, int]]:
    """The address at which web_server.py listens, for HTTP and for WebSocket."""
    script = Path(__file__).with_name("web_server.py")
    with servers.started("web_server", [sys.executable, str(script)]) as server:
        yield HOST, int(server.wait_for(r"listening on (\d+)\n")[1])


# --- OpenSSH


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[SSHServer]:
    sshd = servers.need("openssh", servers.program("sshd"))
    account = servers.unprivileged()  # as root, it needs a directory that Debian makes at boot
    user = account.name if account else getpass.getuser()
    with servers.private_directory(account) as directory:
        host_key, key = directory / "host", directory / "client"
        for path in (host_key, key):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
            servers.run(keygen, account)
        known_hosts = directory / "known_hosts"

        def command(port: int) -> list[str]:
            public = host_key.with_suffix(".pub").read_text()
            known_hosts.write_text(f"[{HOST}]:{port} {public}")
            options = {
                "ListenAddress": HOST,
                "Port": port,
                "HostKey": host_key,
                "PidFile": "none",
                "AuthorizedKeysFile": key.with_suffix(".pub"),
                "StrictModes": "no",
                "UsePAM": "no",
                "Subsystem": "sftp internal-sftp",
            }
            words = (word for name, v in options.items() for word in ("-o", f"{name}={v}"))
            return [sshd, "-D", "-e", "-f", "/dev/null", *words]

        with servers.started_on_free_port(
            "sshd", command, "Server listening on", account=account
        ) as (_, port):
            yield SSHServer((HOST, port), user, key, known_hosts)


# --- mosquitto


@pytest.fixture(scope="session")
def mosquitto(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    mosquitto = servers.need("mosquitto", servers.program("mosquitto"))
    config = tmp_path_factory.mktemp("mosquitto") / "mosquitto.conf"
    plain_port = servers.free_port()

    def command(port: int) -> list[str]:
        config.write_text(
            f"user {getpass.getuser()}\nallow_anonymous true\n"
            f"listener {plain_port} {HOST}\n"
            f"listener {port} {HOST}\ncertfile {certificate.chain}\nkeyfile {certificate.key}\n"
        )
        return [mosquitto, "-c", str(config)]

    with servers.started_on_free_port("mosquitto", command, " running") as (_, port):
        yield Broker((HOST, plain_port), (HOST, port))


# --- NATS


@pytest.fixture(scope="session")
def nats_server() -> Iterator[tuple[str, int]]:
    nats = servers.need("nats", servers.program("nats-server"))

    def command(port: int) -> list[str]:
        return [nats, "--addr", HOST, "--port", str(port)]

    with servers.started_on_free_port("nats-server", command, "Server is ready") as (_, port):
        yield HOST, port


# --- proxies

#: The user and the password of the proxies. tinyproxy does not allow every character in them.
USER, PASSWORD = "alice", "p4ss.word"


@pytest.fixture(scope="session")
def tinyproxy() -> Iterator[ProxyServer]:
    """An HTTP proxy that requires a user and a password."""
    tinyproxy = servers.need("tinyproxy", servers.program("tinyproxy"))
    account = servers.unprivileged()
    with servers.private_directory(account) as directory:
        config = directory / "tinyproxy.conf"

        def command(port: int) -> list[str]:
            config.write_text(
                f"Port {port}\nListen {HOST}\nAllow {HOST}\nBasicAuth {USER} {PASSWORD}\n"
                "Timeout 600\nMaxClients 20\nLogLevel Connect\n"
            )
            if account is not None:
                servers.give(config, account)
            return [tinyproxy, "-d", "-c", str(config)]

        with servers.started_on_free_port("tinyproxy", command, None, account=account) as (
            _,
            port,
        ):
            yield ProxyServer("http", (HOST, port), USER, PASSWORD)


@pytest.fixture(scope="session")
def tls_front(tinyproxy: ProxyServer, certificate: Certificate) -> Iterator[ProxyServer]:
    """The same proxy over TLS, which tinyproxy itself does not support."""
    script = Path(__file__).with_name("tls_front.py")
    files = [str(certificate.chain), str(certificate.key)]
    host, port = tinyproxy.address
    command = [sys.executable, str(script), *files, host, str(port)]
    with servers.started("the TLS front", command) as server:
        address = HOST, int(server.wait_for(r"listening on (\d+)\n")[1])
        yield replace(tinyproxy, scheme="https", address=address)


def microsocks(*arguments: str) -> Iterator[ProxyServer]:
    microsocks = servers.need("microsocks", servers.program("microsocks"))

    def command(port: int) -> list[str]:
        return [microsocks, "-i", HOST, "-p", str(port), *arguments]

    with servers.started_on_free_port("microsocks", command, None) as (_, port):
        yield ProxyServer("socks5", (HOST, port))


@pytest.fixture(scope="session")
def open_microsocks() -> Iterator[ProxyServer]:
    """A SOCKS5 proxy that requires no password."""
    yield from microsocks()


@pytest.fixture(scope="session")
def closed_microsocks() -> Iterator[ProxyServer]:
    """A SOCKS5 proxy that requires a user and a password."""
    for server in microsocks("-u", USER, "-P", PASSWORD):
        yield replace(server, user=USER, password=PASSWORD)


@pytest.fixture(scope="session")
def redis_front(redis_server: RedisServer, certificate: Certificate) -> Iterator[tuple[str, int]]:
    """A TLS server that leads to the TLS of Redis: TLS in TLS."""
    script = Path(__file__).with_name("tls_front.py")
    files = [str(certificate.chain), str(certificate.key)]
    host, port = redis_server.tls
    command = [sys.executable, str(script), *files, host, str(port)]
    with servers.started("TLS in front of Redis", command) as server:
        yield HOST, int(server.wait_for(r"listening on (\d+)\n")[1])


# --- half-close


@pytest.fixture(scope="session", params=["python", "node"])
def half_close_server(
    request: pytest.FixtureRequest, certificate: Certificate
) -> Iterator[tuple[str, int]]:
    """The address of half_close_server.py or half_close_server.js, which do the same."""
    if request.param == "node":
        interpreter = servers.need("node", servers.program("node"))
        script = Path(__file__).with_name("half_close_server.js")
    else:
        interpreter = sys.executable
        script = Path(__file__).with_name("half_close_server.py")
    command = [interpreter, str(script), str(certificate.chain), str(certificate.key)]
    with servers.started(request.param, command) as server:
        yield HOST, int(server.wait_for(r"listening on (\d+)\n")[1])


def s_server(certificate: Certificate, *arguments: str, cwd: Path) -> Iterator[OpenSSL]:
    openssl = servers.need("openssl", servers.program("openssl"))
    files = ["-cert", str(certificate.chain), "-key", str(certificate.key)]
    command = [openssl, "s_server", "-accept", f"{HOST}:0", *files, *arguments]
    with servers.started("openssl s_server", command, cwd=cwd) as server:
        yield OpenSSL((HOST, int(server.wait_for(r"ACCEPT .*:(\d+)\n")[1])), server, cwd)


@pytest.fixture(scope="session")
def openssl_terminal(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenSSL]:
    """``openssl s_server`` that prints what it receives, and how the connection ends."""
    yield from s_server(certificate, cwd=tmp_path_factory.mktemp("s_server"))


@pytest.fixture(scope="session")
def openssl_files(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenSSL]:
    """``openssl s_server`` that answers HTTP requests with the files of a directory."""
    yield from s_server(certificate, "-WWW", cwd=tmp_path_factory.mktemp("s_server"))


@pytest.fixture
def openssl_keyboard(
    request: pytest.FixtureRequest,
    certificate: Certificate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OpenSSL]:
    """``openssl s_server`` with the options in ``param``, for one test that types commands."""
    yield from s_server(certificate, *request.param, cwd=tmp_path_factory.mktemp("s_server"))
