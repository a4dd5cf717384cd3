"""Code as users write it, with its types.

mypy and pyright check it; it never runs. It must pass both with the types in the package and with
those in stubs/.
"""

# pyright: reportUnusedVariable=false

from __future__ import annotations

import asyncio
import math
import socket as stdlib
import ssl
from array import array
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from mmap import mmap
from typing import Any, Literal

import aiohttp
import anyio
import httpcore
import httpx
import trio
from anyio.abc import (
    AnyByteReceiveStream,
    AnyByteSendStream,
    AnyByteStream,
    ByteReceiveStream,
    ByteSendStream,
    ByteStream,
    SocketAttribute,
    SocketStream,
    TaskGroup,
)
from anyio.streams.buffered import BufferedByteReceiveStream, BufferedByteStream
from anyio.streams.stapled import StapledByteStream
from anyio.streams.text import TextReceiveStream, TextSendStream, TextStream
from anyio.streams.tls import TLSListener, TLSStream
from typing_extensions import assert_type

from anyio_connect import (
    UNRESTRICTED,
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    BrokenError,
    CertificateError,
    ClosedError,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    DelimiterNotFoundError,
    DetachError,
    Dialer,
    EventLoopRunningError,
    HalfCloseError,
    IncompleteReadError,
    InvalidAddressError,
    InvalidOptionError,
    Listener,
    ListenError,
    LoopError,
    PendingError,
    ProxyError,
    ReadableStream,
    RefusedError,
    ResolveError,
    Socket,
    SocketAddress,
    SocketError,
    SocketFuture,
    SocketInfo,
    SocketOptions,
    StartTLSError,
    TLSError,
    WritableStream,
    connect,
    listen,
)
from anyio_connect.adapters.aiohttp import socket_factory
from anyio_connect.adapters.asyncio import open_connection
from anyio_connect.adapters.httpcore import NetworkBackend
from anyio_connect.adapters.httpx import Transport
from anyio_connect.adapters.trio import Stream, open_tcp_stream
from anyio_connect.testing import MemoryListener, Network

Mode = Literal["off", "on", "starttls"]


# --- connect()


def addresses(host: str, port: int) -> None:
    assert_type(connect("db.example:5432"), Socket)
    assert_type(connect("[::1]:5432"), Socket)
    assert_type(connect(("db.example", 5432)), Socket)
    assert_type(connect((host, port)), Socket)
    assert_type(connect(SocketAddress("db.example", 5432)), Socket)
    assert_type(connect(SocketAddress(hostname=host, port=port)), Socket)
    address = SocketAddress("db.example", 5432)
    assert_type(address.hostname, str)
    assert_type(address.port, int)
    hostname, number = address
    assert_type(hostname, str)
    assert_type(number, int)


def options(group: TaskGroup, mode: Mode, context: ssl.SSLContext) -> None:
    assert_type(connect("h:1", task_group=group), Socket)
    assert_type(connect("h:1", task_group=None), Socket)
    assert_type(connect("h:1", secure_transport="off"), Socket)
    assert_type(connect("h:1", secure_transport="starttls"), Socket)
    assert_type(connect("h:1", secure_transport=mode), Socket)
    assert_type(connect("h:1", allow_half_open=True), Socket)
    assert_type(connect("h:1", secure_transport="on", sni="db.example"), Socket)
    assert_type(connect("h:1", secure_transport="on", alpn=["h2", "http/1.1"]), Socket)
    assert_type(connect("h:1", secure_transport="on", alpn=("h2",)), Socket)
    assert_type(connect("h:1", secure_transport="on", ssl_context=context), Socket)
    assert_type(connect("h:1", connect_timeout=2.5), Socket)
    assert_type(connect("h:1", connect_timeout=5), Socket)
    assert_type(connect("h:1", connect_timeout=math.inf), Socket)
    assert_type(connect("h:1", secure_transport=None, allow_half_open=None, sni=None), Socket)
    assert_type(connect("h:1", alpn=None, ssl_context=None, connect_timeout=None), Socket)
    # A str is a Sequence[str], so no checker can tell that this raises InvalidOptionError.
    connect("h:1", secure_transport="on", alpn="h2")


def options_made_elsewhere(group: TaskGroup) -> None:
    none: SocketOptions = {}
    some: SocketOptions = {"secure_transport": "on", "connect_timeout": 5, "close_timeout": 1.5}
    some["alpn"] = ["h2"]
    some["sni"] = None
    assert_type(some["connect_timeout"], float | None)
    assert_type(some["close_timeout"], float | None)
    assert_type(some.get("keep_alive"), float | None)
    assert_type(some.get("require_close_notify"), bool | None)
    some["keep_alive"] = 30
    some["require_close_notify"] = False
    assert_type(some.get("sni"), str | None)
    assert_type(connect("h:1", **none), Socket)
    assert_type(connect("h:1", **some), Socket)
    assert_type(connect("h:1", task_group=group, **SocketOptions(allow_half_open=True)), Socket)


def wrapped(address: str, dial: Callable[[str], Socket] = connect) -> Socket:
    return dial(address)


# --- Socket


async def entered() -> None:
    async with connect("h:1") as socket:
        assert_type(socket, Socket)
        await socket.send(b"ping")
        assert_type(await socket.receive(), bytes)


async def attributes(socket: Socket) -> None:
    assert_type(socket.readable, ReadableStream)
    assert_type(socket.writable, WritableStream)
    assert_type(socket.opened, SocketFuture[SocketInfo])
    assert_type(socket.closed, SocketFuture[None])
    assert_type(socket.upgraded, bool)
    assert_type(socket.start_tls(), Socket)
    assert_type(socket.detach(), stdlib.socket)
    assert_type(socket.start_tls(expected_server_hostname="h", alpn=["smtp"]), Socket)
    assert_type(socket.start_tls(ssl_context=ssl.create_default_context()), Socket)
    assert_type(socket.secure_transport, Mode)


async def methods(socket: Socket, view: memoryview) -> None:
    assert_type(await socket.receive_into(view), int)
    assert_type(await socket.receive_exactly(4), bytes)
    assert_type(await socket.receive_until(b"\n", max_bytes=80), bytes)
    assert_type(socket.is_readable(), bool)
    assert_type(await socket.receive(), bytes)
    assert_type(await socket.receive(10), bytes)
    assert_type(await socket.receive(max_bytes=10), bytes)
    assert_type(await socket.send(b"data"), None)
    assert_type(await socket.send(bytearray(b"data")), None)
    assert_type(await socket.send(view), None)
    assert_type(await socket.send_eof(), None)
    assert_type(await socket.close(), None)
    assert_type(await socket.aclose(), None)
    async for chunk in socket:
        assert_type(chunk, bytes)


async def wrapping(
    stream: ByteStream, unix: anyio.abc.UNIXSocketStream, socket: Socket, given: SocketOptions
) -> None:
    assert_type(Socket.wrap(stream), Socket)
    assert_type(Socket.wrap(unix, secure_transport="on", sni="db.example"), Socket)
    assert_type(Socket.wrap(await TLSStream.wrap(stream), allow_half_open=True), Socket)
    assert_type(Socket.wrap(StapledByteStream(socket.writable, socket.readable)), Socket)
    async with Socket.wrap(socket, **given) as outer:
        assert_type(outer, Socket)


class Mine(Socket):
    pass


async def subclass(socket: Mine) -> None:
    async with socket as same:
        assert_type(same, Mine)


async def typed_attributes(socket: Socket) -> None:
    assert_type(socket.extra(SocketAttribute.remote_port), int)
    assert_type(socket.readable.extra(SocketAttribute.local_port), int)
    assert_type(socket.writable.extra(SocketAttribute.raw_socket).fileno(), int)
    assert_type(socket.extra(SocketAttribute.family), stdlib.AddressFamily)
    assert_type(socket.extra(SocketAttribute.remote_port, None), int | None)
    assert_type(socket.extra_attributes, Mapping[Any, Callable[[], Any]])


# --- the streams


async def reading(
    readable: ReadableStream, writable: WritableStream, file: ByteSendStream
) -> None:
    assert_type(await readable.receive(), bytes)
    assert_type(await readable.receive(1), bytes)
    assert_type(await readable.receive(max_bytes=1), bytes)
    async for chunk in readable:
        assert_type(chunk, bytes)
    assert_type([chunk async for chunk in readable], list[bytes])
    assert_type(await readable.receive_into(bytearray(9)), int)
    assert_type(await readable.receive_into(buffer=memoryview(bytearray(9))), int)
    assert_type(await readable.receive_into(array("I", [0])), int)
    assert_type(await readable.receive_into(mmap(-1, 9)), int)
    assert_type(await readable.receive_exactly(nbytes=4), bytes)
    assert_type(await readable.receive_until(b"\n", 80), bytes)
    assert_type(readable.is_readable(), bool)
    async with readable as same:
        assert_type(same, ReadableStream)
    assert_type(await readable.aclose(), None)
    assert_type(await readable.pipe_to(writable), None)
    assert_type(await readable.pipe_to(connect("h:1")), None)
    assert_type(await readable.pipe_to(file, prevent_close=True), None)
    await readable.pipe_to(file, prevent_abort=True, prevent_cancel=True)


async def writing(writable: WritableStream, view: memoryview, error: ValueError) -> None:
    assert_type(await writable.send(b"data"), None)
    assert_type(await writable.send(bytearray(b"data")), None)
    assert_type(await writable.send(view), None)
    assert_type(await writable.send_eof(), None)
    assert_type(await writable.aclose(), None)
    assert_type(await writable.abort(), None)
    assert_type(await writable.abort(error), None)
    assert_type(await writable.abort(reason="bad header"), None)
    async with writable as same:
        assert_type(same, WritableStream)


# --- as AnyIO's streams


def takes_stream(stream: ByteStream) -> None: ...
def takes_receive_stream(stream: ByteReceiveStream) -> None: ...
def takes_send_stream(stream: ByteSendStream) -> None: ...
def takes_any_stream(stream: AnyByteStream) -> None: ...
def takes_any_receive_stream(stream: AnyByteReceiveStream) -> None: ...
def takes_any_send_stream(stream: AnyByteSendStream) -> None: ...


def as_anyio_streams(socket: Socket) -> None:
    takes_stream(socket)
    takes_receive_stream(socket)
    takes_receive_stream(socket.readable)
    takes_send_stream(socket)
    takes_send_stream(socket.writable)
    takes_any_stream(socket)
    takes_any_receive_stream(socket)
    takes_any_receive_stream(socket.readable)
    takes_any_send_stream(socket)
    takes_any_send_stream(socket.writable)


async def in_anyio_streams(socket: Socket) -> None:
    assert_type(await BufferedByteStream(socket).receive_exactly(4), bytes)
    assert_type(await BufferedByteReceiveStream(socket.readable).receive_until(b"\n", 99), bytes)
    assert_type(await TextStream(socket).receive(), str)
    assert_type(await TextReceiveStream(socket.readable).receive(), str)
    assert_type(await TextSendStream(socket.writable).send("text"), None)
    stapled = StapledByteStream(socket.writable, socket.readable)
    assert_type(await stapled.receive(), bytes)
    await anyio.aclose_forcefully(socket)
    await anyio.aclose_forcefully(socket.writable)


# --- futures


async def awaiting(socket: Socket) -> None:
    info = await socket.opened
    assert_type(info, SocketInfo)
    assert_type(info.remote_address, str | None)
    assert_type(info.local_address, str | None)
    assert_type(info.proxy_address, str | None)
    assert_type(info.alpn, str | None)
    assert_type(await socket.closed, None)


def asking(socket: Socket) -> None:
    assert_type(socket.opened.done(), bool)
    assert_type(socket.opened.result(), SocketInfo)
    assert_type(socket.closed.result(), None)
    assert_type(socket.opened.exception(), SocketError | None)
    if error := socket.closed.exception():
        assert_type(error, SocketError)
        assert_type(error.code, str)


def covariant(future: SocketFuture[SocketInfo]) -> SocketFuture[object]:
    return future


async def as_awaitables(socket: Socket) -> None:
    async def wait(what: Awaitable[object]) -> None:
        await what

    await wait(socket.opened)
    await wait(socket.closed)
    async with anyio.create_task_group() as group:
        group.start_soon(wait, socket.opened)
    assert_type(socket.opened.__await__(), Generator[object, None, SocketInfo])


async def shared(futures: list[SocketFuture[Any]]) -> bool:
    return all(future.done() for future in futures)


def information() -> None:
    assert_type(SocketInfo("192.0.2.1:80", None), SocketInfo)
    info = SocketInfo(remote_address=None, local_address=None, alpn="h2")
    assert_type(info == SocketInfo(None, None), bool)
    assert_type({info: 1}[info], int)


# --- errors


def codes(error: SocketError) -> None:
    assert_type(error.code, str)
    assert_type(SocketError.code, str)
    assert_type(BrokenError.code, str)
    assert_type(error.__cause__, BaseException | None)


def connect_errors(error: ConnectError) -> None:
    assert_type(error.code, str)
    assert_type(error.attempts, tuple[ConnectError, ...])
    assert_type(error.errno, int | None)
    assert_type([str(attempt) for attempt in error.attempts], list[str])
    # Users raise these in their tests.
    assert_type(ConnectError("no"), ConnectError)
    assert_type(RefusedError("no", attempts=(error,)), RefusedError)
    assert_type(ResolveError("no", attempts=()), ResolveError)
    assert_type(ConnectTimeoutError("no"), ConnectTimeoutError)
    assert_type(ClosedError("no"), ClosedError)
    assert_type(CertificateError("no").verify_code, int)
    assert_type(CertificateError("no").verify_message, str)


def caught_as_before() -> None:
    everything: list[type[SocketError]] = [
        BrokenError,
        ClosedError,
        ConnectError,
        ConnectTimeoutError,
        InvalidAddressError,
        InvalidOptionError,
        PendingError,
        RefusedError,
        ResolveError,
        DetachError,
        EventLoopRunningError,
        StartTLSError,
    ]
    as_os_errors: list[type[OSError]] = [ConnectError, ConnectTimeoutError]
    as_value_errors: list[type[ValueError]] = [InvalidAddressError, InvalidOptionError]
    as_runtime_errors: list[type[RuntimeError]] = [
        DetachError,
        EventLoopRunningError,
        PendingError,
        StartTLSError,
    ]
    as_refused: type[ConnectionRefusedError] = RefusedError
    as_timeout: type[TimeoutError] = ConnectTimeoutError
    as_unverified: type[ssl.SSLCertVerificationError] = CertificateError
    as_ssl_errors: list[type[ssl.SSLError]] = [CertificateError, TLSError]
    as_gaierror: type[stdlib.gaierror] = ResolveError
    as_closed: type[anyio.ClosedResourceError] = ClosedError
    as_broken: type[anyio.BrokenResourceError] = BrokenError
    as_incomplete: type[anyio.IncompleteRead] = IncompleteReadError
    as_not_implemented: type[NotImplementedError] = HalfCloseError
    as_not_found: type[anyio.DelimiterNotFound] = DelimiterNotFoundError


async def handling(socket: Socket) -> str:
    try:
        await socket.opened
    except (RefusedError, ResolveError) as exc:
        assert_type(exc.attempts, tuple[ConnectError, ...])
        return exc.code
    except ConnectError as exc:
        return exc.code if exc.errno is None else str(exc.errno)
    except SocketError as exc:
        assert_type(exc, SocketError)
        return exc.code
    return "open"


# --- Connector and AddressPolicy


async def lookup(host: str, port: int) -> list[str]:
    return [host]


def connectors(context: ssl.SSLContext, group: TaskGroup, given: SocketOptions) -> None:
    connector = Connector()
    Connector(WORKERS)
    assert_type(Connector(keep_alive=math.inf).keep_alive, float)
    Connector(resolver=lookup, prepare=lambda sock: sock.setblocking(False))
    Connector(resolver=None, prepare=None)
    Connector(
        policy=WORKERS,
        max_connections=6,
        ssl_context=context,
        happy_eyeballs_delay=1,
        local_host="192.0.2.1",
    )
    Connector(max_connections=None, ssl_context=None, local_host=None, close_timeout=None)
    Connector(policy=None, happy_eyeballs_delay=None, connect_timeout=None)
    assert_type(Connector(connect_timeout=5, close_timeout=math.inf).connect_timeout, float)
    assert_type(connector.policy, AddressPolicy)
    assert_type(connector.happy_eyeballs_delay, float)
    assert_type(connector.connect("h:1"), Socket)
    assert_type(connector.connect(("h", 1), task_group=group, allow_half_open=True), Socket)
    assert_type(connector.connect("h:1", **given), Socket)
    assert_type(connector.policy, AddressPolicy)
    assert_type(connector.max_connections, int | None)
    assert_type(replace(connector, max_connections=1), Connector)


async def sockets_of_the_kernels(connector: Connector) -> None:
    assert_type(await connector.resolve("h", 1), list[str])
    assert_type(await connector.resolve("h", 1, connect_timeout=5), list[str])
    assert_type(await connector.connect_socket("h:1"), stdlib.socket)
    assert_type(await connector.connect_socket(("h", 1), connect_timeout=math.inf), stdlib.socket)
    assert_type(await connector.connect_socket(SocketAddress("h", 1)), stdlib.socket)
    assert_type(await connector.connect_socket("h:1", keep_alive=30), stdlib.socket)
    assert_type(connector.connect_socket_blocking("h:1"), stdlib.socket)
    assert_type(connector.connect_socket_blocking("h:1", connect_timeout=None), stdlib.socket)
    assert_type(connector.connect_socket_blocking(("h", 1), keep_alive=None), stdlib.socket)


class Bastion:
    async def dial(self, address: SocketAddress) -> ByteStream:
        return connect("bastion.example:22")

    async def __call__(self, address: tuple[str, int], limit: float = 5) -> SocketStream:
        with anyio.fail_after(limit):
            return await anyio.connect_tcp(*address)


def proxies(url: str | None) -> None:
    assert_type(Connector(proxy="http://user:password@proxy.example:3128").proxy, str | None)
    Connector(WORKERS, proxy=url)
    error = ProxyError("no", status=407, attempts=(ConnectError("no"),))
    assert_type(error.status, int | None)
    assert_type(ProxyError("no").attempts, tuple[ConnectError, ...])
    failed: ConnectError = error


def dialers(given: Dialer) -> None:
    Connector(dialer=given)
    Connector(dialer=Bastion().dial)
    Connector(WORKERS, dialer=Bastion())
    Connector(dialer=lambda address: anyio.connect_tcp(address.hostname, address.port))
    assert_type(Connector(dialer=None).dialer, Dialer | None)


def policies(network: IPv4Network | IPv6Network, address: IPv4Address | IPv6Address) -> None:
    AddressPolicy()
    AddressPolicy(allow=["10.0.0.0/8", network], deny={address}, public_only=True)
    AddressPolicy(refuse_loops=True, also=(WORKERS,))
    AddressPolicy(allow=None, allow_ports=[443, (8000, 8099), range(1, 5)], deny_ports=(25,))
    assert_type(WORKERS & UNRESTRICTED, AddressPolicy)
    assert_type(replace(WORKERS, allow=["10.0.0.0/8"]), AddressPolicy)
    assert_type(WORKERS.refusal("10.0.0.1", 443), str | None)
    assert_type(WORKERS.refusal(address, 443), str | None)
    assert_type(WORKERS.port_refusal(25), str | None)
    assert_type(WORKERS.loops_refused, bool)


# --- listen()


async def listening(group: TaskGroup) -> None:
    async def handler(socket: Socket) -> None: ...

    listener = await listen("127.0.0.1:0", allow_half_open=True, backlog=5)
    assert_type(listener, Listener)
    assert_type(listener.addresses, list[str])
    async with await listen(
        ("::1", 0), allow_half_open=None, close_timeout=1, keep_alive=30, backlog=None
    ) as other:
        assert_type(other, Listener)
        await other.serve(handler)
        await other.serve(handler, group)
    anyio_listener: anyio.abc.Listener[Socket] = listener


def more_errors() -> None:
    denied: PermissionError = AddressNotAllowedError("no")
    loop: ConnectError = LoopError("no")
    failed: OSError = ListenError("no")


# --- testing


async def networks(address: SocketAddress, connector: Connector) -> None:
    network = Network(latency=0.5, buffer_size=1000)
    assert_type(network.latency, float)
    network.latency = 1
    network.add_host("db.example")
    network.add_host("db.example", "192.0.2.1", "2001:db8::1")
    network.fail("db.example:5432", OSError(111, "refused"))
    network.fail(address, None)
    with network.silence(("db.example", 5432)) as nothing:
        assert_type(nothing, None)
    assert_type(network.connector(), Connector)
    assert_type(network.connector(connector, policy=WORKERS), Connector)
    Connector(dialer=network.dial)
    assert_type(await network.dial(address), ByteStream)
    assert_type(await network.resolve("db.example", 5432), list[str])
    async with network.listen("db.example:0", allow_half_open=True) as listener:
        assert_type(listener, MemoryListener)
        assert_type(listener.addresses, list[str])
        assert_type(await listener.accept(), Socket)


async def serving_in_memory(listener: MemoryListener, group: TaskGroup) -> None:
    async def handler(socket: Socket) -> None: ...

    await listener.serve(handler)
    await listener.serve(handler, group)
    anyio_listener: anyio.abc.Listener[Socket] = listener
    secure = TLSListener(listener, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


# --- adapters


async def adapters(connector: Connector) -> None:
    httpx.AsyncClient(transport=Transport())
    httpx.AsyncClient(transport=Transport(connector, http2=True, limits=httpx.Limits(), retries=1))
    httpcore.AsyncConnectionPool(network_backend=NetworkBackend(connector))
    aiohttp.TCPConnector(socket_factory=socket_factory(WORKERS))
    reader, writer = await open_connection("h:1", connector=connector, ssl=True)
    assert_type(reader, asyncio.StreamReader)
    assert_type(writer, asyncio.StreamWriter)
    stream = await open_tcp_stream("h", 1, connector=connector, secure_transport="on")
    assert_type(stream, Stream)
    of_trio: trio.abc.HalfCloseableStream = stream
