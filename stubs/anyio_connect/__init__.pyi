"""The public API of anyio_connect on one page.

This page is for people: type checkers use the types in the package itself. `nox -s stubs` and
tests/test_stubs.py check that the types here are the same. The docstrings of the package explain
in full what this page says in a line.
"""

import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import TracebackType
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
)

import anyio
from anyio import abc
from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream, TaskGroup

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer
if sys.version_info >= (3, 11):
    from typing import Never, Self, Unpack
else:
    from typing_extensions import Never, Self, Unpack

__all__ = (
    "UNRESTRICTED",
    "WORKERS",
    "AddressNotAllowedError",
    "AddressPolicy",
    "BrokenError",
    "CertificateError",
    "ClosedError",
    "ConnectError",
    "ConnectTimeoutError",
    "Connector",
    "DelimiterNotFoundError",
    "DetachError",
    "Dialer",
    "EventLoopRunningError",
    "HalfCloseError",
    "IncompleteReadError",
    "InvalidAddressError",
    "InvalidOptionError",
    "ListenError",
    "Listener",
    "LoopError",
    "PendingError",
    "ProxyError",
    "ReadableStream",
    "RefusedError",
    "ResolveError",
    "Socket",
    "SocketAddress",
    "SocketError",
    "SocketFuture",
    "SocketInfo",
    "SocketOptions",
    "StartTLSError",
    "TLSError",
    "WritableStream",
    "connect",
    "listen",
)

# --- connect()

def connect(
    address: str | SocketAddress | tuple[str, int],  # "host:port", "[IPv6]:port", (host, port)
    *,
    task_group: TaskGroup | None = None,  # connect at once, in a task of this group
    **options: Unpack[SocketOptions],
) -> Socket:
    """Return a pending socket. The first task that needs the connection makes it."""

class SocketAddress(NamedTuple):
    """The host and the port to connect to."""

    hostname: str
    port: int

class SocketOptions(TypedDict, total=False):
    """The options of connect(). Every key may be left out, or be None."""

    secure_transport: Literal["off", "on", "starttls"] | None  # the default is "off"
    allow_half_open: bool | None  # True: we may send after the peer has ended; default False
    sni: str | None  # the name to send and to verify, instead of the host name of the address
    alpn: Sequence[str] | None  # protocols to offer, in order of preference; not a single str
    ssl_context: ssl.SSLContext | None  # for your own CA, or a client certificate
    connect_timeout: (
        float | None  # seconds for a slot, name lookup, TCP and TLS together; math.inf: no limit
    )
    close_timeout: float | None  # seconds that close() waits without progress; default 5
    keep_alive: (
        float | None  # seconds of silence until the kernel checks for the peer; default 60
    )
    require_close_notify: bool | None  # True: an end of TLS without it is an error; default True

# --- Connector: where sockets may connect to, how, and how many there may be

@dataclass(frozen=True, eq=False)
class Connector:
    """Rules and settings for connections. It belongs to no event loop and no thread."""

    policy: AddressPolicy = ...
    max_connections: int | None = None  # further sockets wait in a queue
    ssl_context: ssl.SSLContext | None = None  # if the call gives none
    happy_eyeballs_delay: float = 0.25  # seconds until the next address is tried as well
    local_host: str | None = None  # the IP address to connect from
    close_timeout: float = 5.0  # seconds that close() waits without progress
    connect_timeout: float = ...  # math.inf: no limit
    keep_alive: float = 60.0  # seconds of silence until the kernel checks; math.inf: never
    # looks names up instead of the system: host and port -> IP addresses
    resolver: Callable[[str, int], Awaitable[Sequence[str]]] | None = None
    # is called with each new socket before it is bound and connected
    prepare: Callable[[socket.socket], object] | None = None
    dialer: Dialer | None = None  # makes the connections instead of the system
    proxy: str | None = None  # "http://user:password@host:3128", https://, socks5:// or socks5h://
    def __init__(  # None is the default
        self,
        policy: AddressPolicy | None = None,
        max_connections: int | None = None,
        ssl_context: ssl.SSLContext | None = None,
        happy_eyeballs_delay: float | None = None,
        local_host: str | None = None,
        close_timeout: float | None = None,
        connect_timeout: float | None = None,
        keep_alive: float | None = None,
        resolver: Callable[[str, int], Awaitable[Sequence[str]]] | None = None,
        prepare: Callable[[socket.socket], object] | None = None,
        dialer: Dialer | None = None,
        proxy: str | None = None,
    ) -> None: ...
    def __post_init__(self) -> None: ...
    def connect(
        self,
        address: str | SocketAddress | tuple[str, int],
        *,
        task_group: TaskGroup | None = None,
        **options: Unpack[SocketOptions],
    ) -> Socket:
        """Like connect(), with these rules. If they forbid the address, the futures fail."""
    async def resolve(
        self, host: str, port: int, *, connect_timeout: float | None = None
    ) -> list[str]:
        """Return the IP addresses that the policy allows, for clients that connect themselves."""
    async def connect_socket(
        self,
        address: str | SocketAddress | tuple[str, int],
        *,
        connect_timeout: float | None = None,
        keep_alive: float | None = None,
    ) -> socket.socket:
        """Connect, and return the kernel's socket, non-blocking, for libraries that take sock=.

        It holds a slot of max_connections until it is closed.
        """
    def connect_socket_blocking(
        self,
        address: str | SocketAddress | tuple[str, int],
        *,
        connect_timeout: float | None = None,
        keep_alive: float | None = None,
    ) -> socket.socket:
        """The same for a thread without an event loop, which waits. The socket is blocking."""
    def __copy__(self) -> Self:
        """Return the same object, with the same slots."""
    def __deepcopy__(self, memo: object) -> Self:
        """Return the same object, with the same slots."""

class Dialer(Protocol):
    """An async function that connects, and returns a ByteStream of any kind."""

    def __call__(self, address: SocketAddress, /) -> Awaitable[ByteStream]:
        """Connect to an address that the policy allows, or to the name if it judges no addresses.

        A SocketError is raised unchanged, an OSError is treated as the system's, and any other
        exception becomes a ConnectError.
        """

_Network: TypeAlias = str | IPv4Network | IPv6Network | IPv4Address | IPv6Address
_Port: TypeAlias = int | range | tuple[int, int]  # a pair is the first and the last

@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Rules for addresses and ports. It judges IP addresses, never names."""

    allow: Iterable[_Network] | None = None  # None: all; with public_only: only the public ones
    deny: Iterable[_Network] = ()  # wins over allow
    allow_ports: Iterable[_Port] | None = None  # None: all
    deny_ports: Iterable[_Port] = ()  # wins over allow_ports
    public_only: bool = False  # public unicast, and what allow contains; never cloud metadata
    refuse_loops: bool = False  # no connections to listen() in this process, or to itself
    also: tuple[AddressPolicy, ...] = ()  # further policies, which must all allow the address
    def __post_init__(self) -> None: ...
    def refusal(self, address: str | IPv4Address | IPv6Address, port: int) -> str | None:
        """Say which rule forbids connecting to the address; None if no rule does. No I/O."""
    def port_refusal(self, port: int) -> str | None:
        """Say which rule forbids the port for every address; None if no rule does."""
    @property
    def loops_refused(self) -> bool:
        """Whether this policy, or one of also, refuses loops."""
    def __and__(self, other: AddressPolicy) -> AddressPolicy:
        """Allow what both allow."""

UNRESTRICTED: AddressPolicy  # allows everything: the default
WORKERS: AddressPolicy  # public unicast addresses, no port 25, no loops

# --- Socket and its two streams

class Socket(ByteStream):
    """A TCP connection, pending or made. It is a ByteStream of AnyIO."""

    # connect() and wrap() return sockets.
    def __init__(self, opener: Never, target: Never, slot: Never) -> None: ...
    @staticmethod
    def wrap(stream: ByteStream, **options: Unpack[SocketOptions]) -> Socket:
        """Return a socket over a stream that is connected already, such as a Unix socket's.

        It behaves like any other, as far as the stream allows. TLS over a Socket is TLS in TLS.
        """
    @property
    def readable(self) -> ReadableStream:
        """The stream of the data that the peer sends."""
    @property
    def writable(self) -> WritableStream:
        """The stream of the data that we send."""
    @property
    def opened(self) -> SocketFuture[SocketInfo]:
        """Settles when the connection is made, or cannot be made."""
    @property
    def closed(self) -> SocketFuture[None]:
        """Settles when the connection is over; awaiting it watches for the peer's hang-up."""
    @property
    def upgraded(self) -> bool:
        """Whether start_tls() has taken the connection over."""
    @property
    def secure_transport(self) -> Literal["off", "on", "starttls"]:
        """The option of connect(); "on" if start_tls() made the socket."""
    def start_tls(
        self,
        *,
        expected_server_hostname: str | None = None,  # the name that the certificate must have
        ssl_context: ssl.SSLContext | None = None,  # instead of that of connect()
        alpn: Sequence[str] | None = None,  # instead of that of connect()
    ) -> Socket:
        """Return a pending socket that uses TLS on this connection. It replaces this socket.

        A handshake that fails or is cancelled drops the connection.
        """
    def detach(self) -> socket.socket:
        """Return the kernel's socket, non-blocking, for other code. It replaces this object.

        DetachError: over TLS, before it is open, during a call, or if data was read ahead.
        """
    async def close(self) -> None:
        """Close both directions. Any task may call this, at any time, any number of times.

        TLS sends close_notify, and does not wait for the peer's.
        """
    async def aclose(self) -> None:
        """The same as close(), under AnyIO's name."""
    async def __aenter__(self) -> Self:
        """Wait until the connection is open."""
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Close the socket."""
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The same as readable.receive()."""
    async def receive_into(self, buffer: Buffer) -> int:
        """The same as readable.receive_into()."""
    async def receive_exactly(self, nbytes: int) -> bytes:
        """The same as readable.receive_exactly()."""
    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """The same as readable.receive_until()."""
    def is_readable(self) -> bool:
        """The same as readable.is_readable()."""
    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """The same as writable.send()."""
    async def send_eof(self) -> None:
        """The same as writable.send_eof()."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, such as SocketAttribute; empty until it is connected."""

class ReadableStream(ByteReceiveStream):
    """The data that the peer sends. Iterating yields chunks of bytes until the peer ends."""

    # The type of socket.readable.
    def __init__(self, connection: Never) -> None: ...
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte, as soon as there are any; anyio.EndOfStream at the end."""
    async def receive_into(self, buffer: Buffer) -> int:
        """The same, into writable memory. Returns the number of bytes."""
    async def receive_exactly(self, nbytes: int) -> bytes:
        """Receive exactly nbytes. If cancelled, or at the end, the data that arrived is kept."""
    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """Receive the data before delimiter. Both together have at most max_bytes.

        The data after the delimiter is kept for the next receive of any kind.
        """
    def is_readable(self) -> bool:
        """Whether receive() would return or raise without waiting; False if that is unknown."""
    async def aclose(self) -> None:
        """Stop receiving. The socket can still send."""
    async def pipe_to(
        self,
        destination: ByteSendStream,
        *,
        prevent_close: bool = False,  # when this stream ends, leave the destination open
        prevent_abort: bool = False,  # when receiving fails, do not abort the destination
        prevent_cancel: bool = False,  # when sending fails, do not close this stream
    ) -> None:
        """Send everything received to destination, with backpressure, and then end it."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The same as those of the socket."""

class WritableStream(ByteSendStream):
    """The data that we send."""

    # The type of socket.writable.
    def __init__(self, connection: Never) -> None: ...
    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of item.

        If it is cancelled after a part was sent (over TLS: encrypted), our side is broken.
        Receiving works.
        """
    async def send_eof(self) -> None:
        """End our side with FIN or TLS close_notify. Receiving goes on."""
    async def aclose(self) -> None:
        """End our side after a send in flight. Does nothing if our side has ended already."""
    async def abort(self, reason: object = None) -> None:
        """Drop the connection now, in both directions. The peer gets a reset."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The same as those of the socket."""

# --- listen()

async def listen(
    address: str | SocketAddress | tuple[str, int],  # as for connect(); port 0: any free one
    *,
    allow_half_open: bool | None = None,  # as for connect()
    close_timeout: float | None = None,  # as for connect()
    keep_alive: float | None = None,  # as for connect()
    backlog: int | None = None,  # connections that the kernel keeps until they are accepted
) -> Listener:
    """Listen at address, for plain TCP."""

class Listener(abc.Listener[Socket]):
    """Accepts connections. Each becomes a Socket."""

    # listen() returns listeners.
    def __init__(self, sockets: Never, options: Never) -> None: ...
    @property
    def addresses(self) -> list[str]:
        """The addresses that it listens at, as "ip:port"."""
    async def serve(
        self, handler: Callable[[Socket], Any], task_group: TaskGroup | None = None
    ) -> None:
        """Run handler in a task for each connection, until cancelled or closed."""
    async def aclose(self) -> None:
        """Stop listening. Accepted connections stay open."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, for the first address."""

# --- facts and results

@dataclass(frozen=True)
class SocketInfo:
    """The result of socket.opened. Addresses are "ip:port", IPv6 in brackets."""

    remote_address: str | None
    local_address: str | None
    alpn: str | None = None  # the protocol agreed on in the TLS handshake
    proxy_address: str | None = None  # if set, remote_address is what the proxy was asked for

_T_co = TypeVar("_T_co", covariant=True)

class SocketFuture(Generic[_T_co]):
    """A read-only result to wait for. Any task may await it, any number of times."""

    # The type of socket.opened and socket.closed.
    def __init__(self, outcome: Never, drive: Never, forget: Never) -> None: ...
    def __await__(self) -> Generator[object, None, _T_co]:
        """Wait for the result, or raise the failure. Cancelling this does not settle it."""
    def done(self) -> bool:
        """Whether it has settled, with a result or with a failure."""
    def result(self) -> _T_co:
        """Return the result or raise the failure; PendingError if it has not settled yet."""
    def exception(self) -> SocketError | None:
        """Return the failure, None if there is a result; PendingError if it has not settled."""

# --- errors. Each is also a subclass of a common class, for code that does not know this package.
#     A clean end is anyio.EndOfStream. Two tasks in one direction get anyio.BusyResourceError.

class SocketError(Exception):
    """The base class of all errors. The low-level error, if any, is the __cause__."""

    code: ClassVar[str] = "socket_error"  # stable, for programs; str(error) is for people

class InvalidAddressError(SocketError, ValueError):
    """The address is not the address of a TCP endpoint. Raised before any I/O."""

    code: ClassVar[str] = "invalid_address"

class InvalidOptionError(SocketError, ValueError):
    """An option is unknown, has a bad value, or contradicts another. Raised before any I/O."""

    code: ClassVar[str] = "invalid_option"

class PendingError(SocketError, RuntimeError):
    """result() or exception() of a future was called before it settled."""

    code: ClassVar[str] = "pending"

class ConnectError(SocketError, OSError):
    """The connection could not be made. errno is that of the last attempt, or None."""

    code: ClassVar[str] = "connect_failed"
    attempts: tuple[ConnectError, ...]  # one for each address that was tried
    def __init__(self, message: str, *, attempts: tuple[ConnectError, ...] = ()) -> None: ...

class ResolveError(ConnectError, socket.gaierror):
    """The host name has no usable address, or it could not be looked up."""

    code: ClassVar[str] = "resolve_failed"

class RefusedError(ConnectError, ConnectionRefusedError):
    """Nothing listens on the port."""

    code: ClassVar[str] = "refused"

class ConnectTimeoutError(ConnectError, TimeoutError):
    """connect_timeout ran out, or the operating system gave up waiting."""

    code: ClassVar[str] = "connect_timeout"

class AddressNotAllowedError(ConnectError, PermissionError):
    """The policy of the Connector forbids the address or the port. Nothing was sent to it."""

    code: ClassVar[str] = "address_not_allowed"

class LoopError(ConnectError):
    """The connection would lead back to this process, and the policy refuses that."""

    code: ClassVar[str] = "loop"

class ListenError(SocketError, OSError):
    """It is not possible to listen at the address, or to accept further connections there."""

    code: ClassVar[str] = "listen_failed"

class ProxyError(ConnectError):
    """The proxy could not be reached, refused, or gave an invalid answer."""

    code: ClassVar[str] = "proxy_failed"
    status: int | None  # the HTTP status or the SOCKS5 reply code; None without such an answer
    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        attempts: tuple[ConnectError, ...] = (),
    ) -> None: ...

class TLSError(ConnectError, ssl.SSLError):
    """The TLS handshake failed. The message gives the reason."""

    code: ClassVar[str] = "tls_failed"

class CertificateError(TLSError, ssl.SSLCertVerificationError):
    """The peer's certificate was rejected: expired, valid for other names, or not trusted."""

    code: ClassVar[str] = "certificate_rejected"
    verify_code: int = 0
    verify_message: str = ""

class StartTLSError(SocketError, RuntimeError):
    """start_tls() cannot work in this state. The socket is unchanged."""

    code: ClassVar[str] = "start_tls"

class DetachError(SocketError, RuntimeError):
    """detach() or connect_socket() cannot return a socket of the kernel."""

    code: ClassVar[str] = "detach"

class EventLoopRunningError(SocketError, RuntimeError):
    """connect_socket_blocking() was called in a thread with a running event loop."""

    code: ClassVar[str] = "event_loop_running"

class ClosedError(SocketError, anyio.ClosedResourceError):
    """The socket, or this half of it, was closed on our side."""

    code: ClassVar[str] = "closed"

class BrokenError(SocketError, anyio.BrokenResourceError):
    """The connection is unusable: reset, lost, aborted, or a send was cut short."""

    code: ClassVar[str] = "broken"

class HalfCloseError(SocketError, NotImplementedError):
    """The wrapped stream cannot end one direction alone. The socket is unchanged."""

    code: ClassVar[str] = "half_close"

class IncompleteReadError(SocketError, anyio.IncompleteRead):
    """The peer ended before all the data had arrived. receive() returns the data that has."""

    code: ClassVar[str] = "incomplete_read"
    def __init__(self, message: str) -> None: ...

class DelimiterNotFoundError(SocketError, anyio.DelimiterNotFound):
    """receive_until() did not find its delimiter. receive() returns the data that arrived."""

    code: ClassVar[str] = "delimiter_not_found"
    def __init__(self, message: str) -> None: ...
