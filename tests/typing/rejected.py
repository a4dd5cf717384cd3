"""Code that must not type-check. It never runs.

Each line names the errors that mypy and pyright must find in it. If one of them no longer finds
its error, that is an error too (warn_unused_ignores, reportUnnecessaryTypeIgnoreComment).
"""

# pyright: reportUnusedVariable=false
# The type of an attribute that does not exist is unknown. That need not be reported as well:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from anyio.abc import ByteStream, SocketAttribute

from anyio_connect import (
    WORKERS,
    AddressPolicy,
    ConnectError,
    Connector,
    ProxyError,
    ReadableStream,
    Socket,
    SocketAddress,
    SocketError,
    SocketFuture,
    SocketInfo,
    SocketOptions,
    WritableStream,
    connect,
    listen,
)
from anyio_connect.adapters.aiohttp import socket_factory
from anyio_connect.adapters.asyncio import open_connection
from anyio_connect.adapters.httpcore import NetworkBackend
from anyio_connect.adapters.httpx import Transport
from anyio_connect.adapters.trio import Stream, open_tcp_stream
from anyio_connect.testing import Network

# --- connect()


def addresses(info: SocketInfo) -> None:
    connect()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    connect(5432)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect(b"h:1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h", 1)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    connect(("h", "1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect(("h",))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect(("h", 1, 0, 0))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect(["h", 1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect(info.remote_address)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SocketAddress("h", "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SocketAddress(b"h", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SocketAddress("h:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def options(socket: Socket, several: dict[str, bool]) -> None:
    connect("h:1", secure_transport="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", secure_transport=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", secureTransport="on")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    connect("h:1", allowHalfOpen=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    connect("h:1", allow_half_open="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", sni=b"h")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", alpn={"h2"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", alpn=[b"h2"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    connect("h:1", ssl_context=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", connect_timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", require_close_notify="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", close_timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", keep_alive="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", task_group=socket)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connect("h:1", {"allow_half_open": True})  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    connect("h:1", **several)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def options_made_elsewhere() -> None:
    wrong_name: SocketOptions = {"allowHalfOpen": True}  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportAssignmentType]
    wrong_value: SocketOptions = {"secure_transport": "tls"}  # type: ignore[typeddict-item]  # pyright: ignore[reportAssignmentType]
    SocketOptions(timeout=5)  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportCallIssue]


# --- Socket


async def not_made_by_hand() -> None:
    Socket()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ReadableStream()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    WritableStream()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    SocketFuture()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await connect("h:1")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    with connect("h:1"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


def wrapping(socket: Socket, stream: ByteStream) -> None:
    Socket.wrap()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Socket.wrap("h:1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Socket.wrap(socket.readable)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Socket.wrap(stream, secure_transport="tls")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Socket.wrap(stream, hostname="h")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def read_only(socket: Socket, other: Socket) -> None:
    socket.opened = other.opened  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    socket.closed = other.closed  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    socket.readable = other.readable  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    socket.writable = other.writable  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    socket.start_tls("host")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    socket.detach("fd")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    fd: int = socket.detach()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    socket.upgraded = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    socket.secure_transport = "on"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def no_such_mode(socket: Socket) -> bool:
    return socket.secure_transport == "tls"  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]


def opened_is_no_method(socket: Socket) -> None:
    socket.opened()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]


def typed_attributes(socket: Socket) -> None:
    name: str = socket.extra(SocketAttribute.remote_port)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


# --- the streams


async def sending(socket: Socket, writable: WritableStream) -> None:
    await writable.send("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await writable.send([1, 2])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await writable.send(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await writable.send()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await socket.send("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await writable.receive()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def receiving(readable: ReadableStream) -> None:
    await readable.receive_into("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await readable.receive_into(99)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    data: bytes = await readable.receive_into(bytearray(9))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await readable.receive_exactly()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await readable.receive_exactly(4.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await readable.receive_until(b"\n")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await readable.receive_until("\n", 80)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await readable.is_readable()  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    text: str = await readable.receive()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await readable.receive("10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await readable.receive(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await readable.send(b"data")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    for _ in readable:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


async def piping(readable: ReadableStream, writable: WritableStream) -> None:
    await readable.pipe_to(readable)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await readable.pipe_to(writable, True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await readable.pipe_to(writable, preventClose=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# --- futures


async def futures(socket: Socket) -> None:
    address: str = await socket.opened  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    info: SocketInfo = socket.opened  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    number: SocketFuture[int] = socket.opened  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    error: OSError | None = socket.opened.exception()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    socket.opened.cancel()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    socket.opened.set_result(info)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def information(info: SocketInfo) -> None:
    info.alpn = "h2"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    info.remote_address.split(":")  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    SocketInfo()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def addresses_are_tuples(address: SocketAddress) -> None:
    address.port = 80  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


# --- errors


def errors(error: SocketError, failed: ConnectError) -> None:
    error.attempts  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    error.code = "mine"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    number: int = error.code  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    code: int = failed.errno  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    ConnectError()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ConnectError(111, "refused")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    ProxyError("no", 407)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ProxyError("no", status="407")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    failed.status  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    ConnectError("no", attempts=[failed])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- Connector, AddressPolicy and listen()


def connectors(connector: Connector) -> None:
    Connector("WORKERS")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(max_connections="6")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(resolver=lambda host, port: [host])  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    Connector(prepare=lambda: None)  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType]
    Connector(keep_alive="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(connect_timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(close_timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(happy_eyeballs_delay="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(local_host=b"127.0.0.1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(timeout=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Connector(dialer=connector.connect)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(dialer=listen)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(proxy=b"http://h:1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Connector(proxy=("h", 3128))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connector.proxy = None  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    connector.connect("h:1", proxy="http://h:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Connector(dialer="ssh")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    connector.policy = WORKERS  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    connector.connect("h:1", secureTransport="on")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def sockets_of_the_kernels(connector: Connector) -> None:
    await connector.resolve("h:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await connector.resolve("h", "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await connector.resolve("h", 1, 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await connector.connect_socket("h:1", secure_transport="on")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await connector.connect_socket(("h", "1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await connector.connect_socket_blocking("h:1")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    connector.connect_socket_blocking("h:1", connect_timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def policies(policy: AddressPolicy) -> None:
    AddressPolicy(allow=[10])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    AddressPolicy(deny=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AddressPolicy(deny_ports=25)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AddressPolicy(deny_ports=["25"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    _ = policy & "10.0.0.0/8"  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
    policy.deny = ()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    policy.refusal("10.0.0.1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def listening() -> None:
    listen("h:0").addresses  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    await listen("h:0", keep_alive="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await listen("h:0", secure_transport="on")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await (await listen("h:0")).serve(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- testing


async def networks() -> None:
    Network(0.5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    network = Network(latency="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    network.add_host("h", ["192.0.2.1"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    network.fail("h:1", ValueError())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    network.fail("h:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await network.listen("h:1")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    network.listen("h:1", backlog=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    network.connector(WORKERS)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- adapters


async def adapters() -> None:
    Transport(WORKERS)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    NetworkBackend(WORKERS)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    socket_factory(Connector())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await open_connection("h:1", ssl="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await open_tcp_stream("h:1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Stream("h:1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
