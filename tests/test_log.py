"""The log: what its lines say and never show, and that debug lines cost nothing while off."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from anyio_connect import (
    WORKERS,
    AddressPolicy,
    BrokenError,
    ConnectError,
    Connector,
    ResolveError,
    Socket,
    TLSError,
    connect,
    listen,
)
from anyio_connect._log import Log, log
from support.peers import listening, refusing_address
from support.proxies import ESTABLISHED, Line, Proxy, hear_http, proxying
from support.sockets import settle
from support.tls_peers import NAME, TLSPeer, client_context, server_context

LOGGER = logging.getLogger("anyio_connect")


class Lines(logging.Handler):
    """Keeps the records of lines, which have to be printable."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)  # not checked here: a handler's exceptions are suppressed

    def take(self) -> list[str]:
        """The lines since the last call."""
        lines = [record.getMessage() for record in self.records]
        self.records.clear()
        assert all(line.isprintable() for line in lines)
        return lines


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    level, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    try:
        yield handler
        handler.take()
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


def naming(*addresses: str) -> Any:
    async def resolver(host: str, port: int) -> list[str]:
        return [*addresses]

    return resolver


# --- what is logged


async def test_a_connection_from_its_name_to_its_end(lines: Lines) -> None:
    async with listening() as listener:
        port = listener.address[1]
        connector = Connector(
            AddressPolicy(allow=["127.0.0.0/8"]),
            resolver=naming("10.0.0.1", "127.0.0.9", "127.0.0.1"),
            happy_eyeballs_delay=3600,
        )
        async with connector.connect(("host.test", port)) as socket:
            info = await socket.opened
    where = f"host.test:{port}"
    told = lines.take()
    refused = told.pop(2)
    assert refused.startswith(f"{where}: not dialled: 10.0.0.1:{port}: the Connector's policy")
    assert told == [
        f"{where}: asking the resolver",
        f"{where}: has 10.0.0.1:{port}, 127.0.0.9:{port}, 127.0.0.1:{port}",
        f"{where}: trying 127.0.0.9:{port}",
        f"{where}: 127.0.0.9:{port}: connection refused: nothing is listening there",
        f"{where}: trying 127.0.0.1:{port}",
        f"{where}: open, from {info.local_address} to 127.0.0.1:{port}",
        f"{where}: closing",
        f"{where}: closed",
    ]


async def test_the_way_through_a_proxy(lines: Lines) -> None:
    async def script(proxy: Proxy, line: Line) -> None:
        await hear_http(proxy, line)
        await line.send(ESTABLISHED if len(proxy.asked) > 1 else b"HTTP/1.1 502 No\r\n\r\n")

    async with proxying(script) as proxy:
        connector = Connector(
            AddressPolicy(deny=["10.0.0.1"]),
            proxy=proxy.url("http", "user:hunter2@"),
            resolver=naming("192.0.2.1", "192.0.2.2"),
        )
        async with connector.connect("host.test:80") as socket:
            info = await socket.opened
    where, at = "host.test:80", f"127.0.0.1:{proxy.port}"
    told = lines.take()
    assert told == [
        f"{where}: asking the resolver",
        f"{where}: has 192.0.2.1:80, 192.0.2.2:80",
        f"{at}: trying {at}",
        f"{where}: asking the proxy http://{at} for 192.0.2.1:80",
        f"{where}: 192.0.2.1:80: it answered 502 Bad Gateway: it could not connect there itself",
        f"{at}: trying {at}",
        f"{where}: asking the proxy http://{at} for 192.0.2.2:80",
        f"{where}: open, from {info.local_address} to 192.0.2.2:80",
        f"{where}: closing",
        f"{where}: closed",
    ]


async def test_an_address_is_not_looked_up(lines: Lines) -> None:
    host, port = refusing_address()
    with pytest.raises(ConnectError) as caught:
        await connect((host, port)).opened
    where = f"{host}:{port}"
    assert lines.take() == [
        f"{where}: trying {where}",
        f"{where}: {where}: connection refused: nothing is listening there",
        f"{where}: not opened: {caught.value}",
        f"{where}: closed: {caught.value}",
    ]


async def test_the_system_is_asked_for_a_name(lines: Lines) -> None:
    async with listening() as listener:
        port = listener.address[1]
        await _open_and_close(("localhost", port))
    assert lines.take()[0] == f"localhost:{port}: looking the name up"


async def _open_and_close(address: tuple[str, int]) -> None:
    async with connect(address):
        pass


async def test_a_detached_socket(lines: Lines) -> None:
    async with listening() as listener:
        socket = connect(listener.address)
        await socket.opened
        lines.take()
        with socket.detach():
            assert lines.take() == ["{}:{}: detached".format(*listener.address)]


async def test_a_handshake(lines: Lines) -> None:
    async with listening() as listener:
        where = "{}:{}".format(*listener.address)
        plain = connect(
            listener.address, secure_transport="starttls", ssl_context=client_context()
        )
        await plain.opened
        lines.take()
        secure = plain.start_tls(expected_server_hostname=NAME)
        async with anyio.create_task_group() as group:
            group.start_soon(secure._connection.opened._wait)
            peer = TLSPeer(await listener.accept(), server_context())
            await peer.shake()
        assert [line.partition(", from")[0] for line in lines.take()] == [
            f"{where}: goes on over TLS",
            f"{where}: TLS handshake, for {NAME}",
            f"{where}: TLSv1.3 with TLS_AES_256_GCM_SHA384",
            f"{where}: open",
        ]
        peer.peer.rst()
        assert isinstance(await settle(secure.closed), BrokenError)
        assert lines.take() == [f"{where}: closed: {secure.closed.exception()}"]


async def test_a_handshake_that_fails(lines: Lines) -> None:
    async with listening() as listener, anyio.create_task_group() as group:
        socket = connect(listener.address, secure_transport="on")

        async def wait() -> None:
            with pytest.raises(TLSError):
                await socket.opened

        group.start_soon(wait)
        (await listener.accept()).fin()
    not_opened, closed = lines.take()[-2:]
    assert not_opened.endswith(f": not opened: {socket.opened.exception()}")
    assert closed.endswith(f": closed: {socket.opened.exception()}")


async def test_an_accepted_socket(lines: Lines) -> None:
    async def handler(socket: Socket) -> None:
        async with socket:
            pass

    async with await listen("127.0.0.1:0") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handler)
        async with connect(listener.addresses[0]) as socket:
            local = (await socket.opened).local_address
            with pytest.raises(anyio.EndOfStream):
                await socket.receive()
        group.cancel_scope.cancel()
    assert f"{local}: open, from {listener.addresses[0]} to {local}" in lines.take()


async def test_a_record_names_the_module_that_logged_it(lines: Lines) -> None:
    async with listening() as listener, connect(listener.address):
        pass
    assert {record.module for record in lines.records} == {"_tcp_connect", "_connection"}


# --- what is not logged


async def test_no_line_is_made_while_debug_lines_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def debug(*about: object, **_: object) -> None:
        made.append(about)

    monkeypatch.setattr(Log, "debug", debug)
    assert not log.debugs
    async with listening() as listener:
        connector = Connector(
            AddressPolicy(allow=["127.0.0.0/8"]),
            resolver=naming("10.0.0.1", "127.0.0.9", "127.0.0.1"),
            ssl_context=client_context(),
        )
        where = ("host.test", listener.address[1])
        async with anyio.create_task_group() as group:
            socket = connector.connect(where, secure_transport="on", sni=NAME, task_group=group)
            await TLSPeer(await listener.accept(), server_context()).shake()
        await socket.close()
        with pytest.raises(ConnectError):
            await connector.connect(("127.0.0.9", listener.address[1])).opened
        await _open_and_close(("localhost", listener.address[1]))
    assert made == []


def test_a_change_of_the_level_takes_effect_at_once(lines: Lines) -> None:
    assert log.debugs
    LOGGER.setLevel(logging.INFO)
    assert not log.debugs
    LOGGER.setLevel(logging.DEBUG)
    assert log.debugs
    logging.disable()
    try:
        assert not log.debugs
    finally:
        logging.disable(logging.NOTSET)
    assert log.debugs


@pytest.mark.parametrize(
    "module", [None, ModuleType("logging")], ids=["not imported", "half imported"]
)
def test_debug_lines_are_off_until_logging_is_imported(
    module: ModuleType | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Log()
    with monkeypatch.context() as patch:
        if module is None:
            patch.delitem(sys.modules, "logging")
        else:
            patch.setitem(sys.modules, "logging", module)
        assert not own.debugs
        assert ("logging" in sys.modules) == (module is not None)
    LOGGER.setLevel(logging.DEBUG)
    try:
        assert own.debugs
    finally:
        LOGGER.setLevel(logging.NOTSET)


def test_the_package_does_not_import_logging(tmp_path: Path) -> None:
    program = "import anyio_connect, sys; sys.exit('logging' in sys.modules)"
    assert not subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=False
    ).returncode


async def test_a_line_is_escaped_and_bounded(lines: Lines) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        raise ValueError("\x1b[2J\nINFO: all is well" + "x" * 10_000)

    with pytest.raises(ResolveError):
        await Connector(resolver=resolver).connect("host.test:9").opened
    log.debug("%s", "\x1b[2J\nINFO: all is well" + "x" * 10_000)
    told = lines.take()
    assert told[-1].startswith(r"\x1b[2J\nINFO: all is well")
    for line in told:
        assert len(line) < 700


async def test_only_a_few_of_many_addresses_are_logged(lines: Lines) -> None:
    many = [f"10.0.0.{number}" for number in range(1, 200)]
    with pytest.raises(ConnectError):
        await Connector(WORKERS, resolver=naming(*many)).connect("host.test:9").opened
    assert lines.take()[1].endswith("10.0.0.8:9, 56 more")


async def test_the_password_of_a_proxy_is_not_logged(lines: Lines) -> None:
    host, port = refusing_address()
    connector = Connector(proxy=f"http://name:passw0rd@{host}:{port}")
    with pytest.raises(ConnectError):
        await connector.connect("host.test:9").opened
    told = lines.take()
    assert told
    assert not [line for line in told if "passw0rd" in line]


@pytest.mark.parametrize("what", ["handler", "filter", "logger"])
async def test_logging_that_fails_breaks_no_connection(
    what: str, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("the disk is full")

    if what == "handler":
        monkeypatch.setattr(lines, "emit", fail)
    elif what == "filter":
        monkeypatch.setattr(lines, "filter", fail)
    else:
        monkeypatch.setattr(LOGGER, "isEnabledFor", fail)
    async with listening() as listener, connect(listener.address) as socket:
        await socket.send(b"x")
        assert await (await listener.accept()).receive() == b"x"
    log.warning("%s", "the same")
    log.error("the same", error=ValueError())
    assert lines.take() == []
