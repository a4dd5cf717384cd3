"""The public API of anyio_connect on one page.

For reading: type checkers use the types in the package itself. `nox -s stubs` and
tests/test_stubs.py prove that this page says the same. What is said here in a line, the
docstrings in the package say at length.
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
    """Return a pending socket at once; the first task that needs the connection makes it."""

class SocketAddress(NamedTuple):
    """Where to connect to."""

    hostname: str
    port: int

class SocketOptions(TypedDict, total=False):
    """What connect() takes besides the address; every key may be left out, or be None."""

    secure_transport: Literal["off", "on", "starttls"] | None  # "off" unless given
    allow_half_open: bool | None  # may we go on sending after the peer's end? False unless given
    sni: str | None  # the name to ask for and to verify, in place of the address's host name
    alpn: Sequence[str] | None  # protocols to offer, most wanted first; a single str is an error
    ssl_context: ssl.SSLContext | None  # for a CA of your own, or a client certificate
    connect_timeout: (
        float | None  # seconds for a slot, names, TCP and TLS together; math.inf: no limit
    )
    close_timeout: float | None  # seconds of close() without any progress; 5 unless given
    keep_alive: (
        float | None  # seconds of silence until the kernel asks for the peer; 60 unless given
    )
    require_close_notify: bool | None  # is a TLS end without it an error? True unless given

# --- Connector: where sockets may go, how, and how many

@dataclass(frozen=True, eq=False)
class Connector:
    """Rules for the sockets of its connect(). Belongs to no event loop and no thread."""

    policy: AddressPolicy = ...
    max_connections: int | None = None  # further sockets wait for their turn, in order
    ssl_context: ssl.SSLContext | None = None  # unless the call gives one
    happy_eyeballs_delay: float = 0.25  # seconds, until the next address is tried as well
    local_host: str | None = None  # the IP address to connect from
    close_timeout: float = 5.0  # seconds of close() without any progress
    connect_timeout: float = ...  # math.inf: no limit
    keep_alive: float = 60.0  # seconds of silence until the kernel asks; math.inf: never
    # looks names up, in place of the system: host and port -> IP addresses
    resolver: Callable[[str, int], Awaitable[Sequence[str]]] | None = None
    # is called with each new socket before that is bound and connected
    prepare: Callable[[socket.socket], object] | None = None
    dialer: Dialer | None = None  # makes the connections, in place of the system
    proxy: str | None = None  # "http://user:password@host:3128", https://, socks5:// or socks5h://
    def __init__(  # None: the default
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
        """As connect(), within the rules; what they forbid makes the socket's futures fail."""
    async def resolve(
        self, host: str, port: int, *, connect_timeout: float | None = None
    ) -> list[str]:
        """The IP addresses that the policy allows, in order, for clients that dial themselves."""
    async def connect_socket(
        self,
        address: str | SocketAddress | tuple[str, int],
        *,
        connect_timeout: float | None = None,
        keep_alive: float | None = None,
    ) -> socket.socket:
        """A connected, non-blocking socket of the kernel's, for libraries that take sock=.

        It holds a slot of max_connections until it is closed.
        """
    def connect_socket_blocking(
        self,
        address: str | SocketAddress | tuple[str, int],
        *,
        connect_timeout: float | None = None,
        keep_alive: float | None = None,
    ) -> socket.socket:
        """The same for a thread that has no event loop: it waits; the socket is blocking."""
    def __copy__(self) -> Self:
        """The same object, and the same slots."""
    def __deepcopy__(self, memo: object) -> Self:
        """The same object, and the same slots."""

class Dialer(Protocol):
    """Another way there: an async function that connects and returns any ByteStream."""

    def __call__(self, address: SocketAddress, /) -> Awaitable[ByteStream]:
        """The address is one that the policy allows; or the name, if it judges no addresses.

        SocketError is told as it is, OSError as the system's, anything else as ConnectError.
        """

_Network: TypeAlias = str | IPv4Network | IPv6Network | IPv4Address | IPv6Address
_Port: TypeAlias = int | range | tuple[int, int]  # a pair is the first and the last

@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Rules for addresses and ports. It judges IP addresses, never names."""

    allow: Iterable[_Network] | None = None  # None: all, or with public_only no others
    deny: Iterable[_Network] = ()  # wins over allow
    allow_ports: Iterable[_Port] | None = None  # None: all
    deny_ports: Iterable[_Port] = ()  # wins over allow_ports
    public_only: bool = False  # public unicast, and what allow holds; never cloud metadata
    refuse_loops: bool = False  # to listen() in this process, and of a socket to itself
    also: tuple[AddressPolicy, ...] = ()  # these must allow it as well
    def __post_init__(self) -> None: ...
    def refusal(self, address: str | IPv4Address | IPv6Address, port: int) -> str | None:
        """Which rule forbids connecting there, in words; None if no rule does. No I/O."""
    def port_refusal(self, port: int) -> str | None:
        """Which rule forbids the port for every address; None if no rule does."""
    @property
    def loops_refused(self) -> bool:
        """Whether this policy, or one of also, refuses loops."""
    def __and__(self, other: AddressPolicy) -> AddressPolicy:
        """Allow what both allow."""

UNRESTRICTED: AddressPolicy  # everything: the default
WORKERS: AddressPolicy  # public unicast addresses, no port 25, no loops

# --- Socket and its two streams

class Socket(ByteStream):
    """A TCP connection, pending or made. It is a ByteStream for everything in AnyIO."""

    # Sockets come from connect(), or from wrap().
    def __init__(self, opener: Never, target: Never, slot: Never) -> None: ...
    @staticmethod
    def wrap(stream: ByteStream, **options: Unpack[SocketOptions]) -> Socket:
        """Return a socket over a stream that is connected already, such as a Unix socket's.

        It behaves as any other, as far as the stream can. TLS over a Socket is TLS in TLS.
        """
    @property
    def readable(self) -> ReadableStream:
        """What the peer sends."""
    @property
    def writable(self) -> WritableStream:
        """What we send."""
    @property
    def opened(self) -> SocketFuture[SocketInfo]:
        """Settles when the connection is made, or cannot be."""
    @property
    def closed(self) -> SocketFuture[None]:
        """Settles when the connection is over; awaiting it watches for the peer's hang-up."""
    @property
    def upgraded(self) -> bool:
        """Whether start_tls() has taken the connection over."""
    @property
    def secure_transport(self) -> Literal["off", "on", "starttls"]:
        """As it was given to connect(); "on" if start_tls() made the socket."""
    def start_tls(
        self,
        *,
        expected_server_hostname: str | None = None,  # the name the certificate must be for
        ssl_context: ssl.SSLContext | None = None,  # in place of connect()'s
        alpn: Sequence[str] | None = None,  # in place of connect()'s
    ) -> Socket:
        """Return a pending socket that puts TLS on this connection; this one is over.

        A handshake that fails or is cancelled drops the connection.
        """
    def detach(self) -> socket.socket:
        """Return the kernel's socket, non-blocking, for other code; this one is over.

        DetachError over TLS, before it is open, with a call in flight or bytes read ahead.
        """
    async def close(self) -> None:
        """Close both directions; any task may, at any time, any number of times.

        TLS sends close_notify, and does not wait for the peer's.
        """
    async def aclose(self) -> None:
        """The same as close(), by AnyIO's name."""
    async def __aenter__(self) -> Self:
        """Wait until it is open."""
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Close it."""
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """As readable.receive()."""
    async def receive_into(self, buffer: Buffer) -> int:
        """As readable.receive_into()."""
    async def receive_exactly(self, nbytes: int) -> bytes:
        """As readable.receive_exactly()."""
    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """As readable.receive_until()."""
    def is_readable(self) -> bool:
        """As readable.is_readable()."""
    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """As writable.send()."""
    async def send_eof(self) -> None:
        """As writable.send_eof()."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, such as SocketAttribute; empty before it is open."""

class ReadableStream(ByteReceiveStream):
    """What the peer sends. Iterating over it gives chunks of bytes until the peer's end."""

    # As socket.readable.
    def __init__(self, connection: Never) -> None: ...
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive what is there, at least a byte; anyio.EndOfStream at the end."""
    async def receive_into(self, buffer: Buffer) -> int:
        """The same, into writable memory; the result is how many bytes."""
    async def receive_exactly(self, nbytes: int) -> bytes:
        """Receive so many bytes. If cancelled, or at the end, what has come is kept."""
    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """Receive what comes before delimiter, both together max_bytes at most.

        What has come behind it is kept for the next receive of any kind.
        """
    def is_readable(self) -> bool:
        """Would receive() return or raise without waiting? False if that cannot be known."""
    async def aclose(self) -> None:
        """Stop reading; the socket lives on for writing."""
    async def pipe_to(
        self,
        destination: ByteSendStream,
        *,
        prevent_close: bool = False,  # at our end, leave the destination open
        prevent_abort: bool = False,  # when receiving fails, do not abort the destination
        prevent_cancel: bool = False,  # when sending fails, do not stop reading
    ) -> None:
        """Send all that is received to destination, no faster than it takes it; then close it."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """As the socket's."""

class WritableStream(ByteSendStream):
    """What we send."""

    # As socket.writable.
    def __init__(self, connection: Never) -> None: ...
    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of it. Cancelled half-way, over TLS once encrypted, it leaves this side broken.

        Reading goes on.
        """
    async def send_eof(self) -> None:
        """End our side, by FIN or TLS close_notify: the peer sees an end; reading goes on."""
    async def aclose(self) -> None:
        """End our side after a send in flight; do nothing if it has ended already."""
    async def abort(self, reason: object = None) -> None:
        """Drop the connection, both directions, now: the peer sees a reset."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """As the socket's."""

# --- listen()

async def listen(
    address: str | SocketAddress | tuple[str, int],  # as for connect(); port 0 is a free one
    *,
    allow_half_open: bool | None = None,  # as for connect()
    close_timeout: float | None = None,  # likewise
    keep_alive: float | None = None,  # likewise
    backlog: int | None = None,  # connections that the kernel keeps until they are accepted
) -> Listener:
    """Listen there, for plain TCP."""

class Listener(abc.Listener[Socket]):
    """Accepts connections; each becomes a Socket."""

    # Listeners come from listen().
    def __init__(self, sockets: Never, options: Never) -> None: ...
    @property
    def addresses(self) -> list[str]:
        """Where it listens: "ip:port"."""
    async def serve(
        self, handler: Callable[[Socket], Any], task_group: TaskGroup | None = None
    ) -> None:
        """Run handler in a task for each connection, until cancelled or closed."""
    async def aclose(self) -> None:
        """Stop listening; connections that were accepted go on."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, of the first address."""

# --- what they tell

@dataclass(frozen=True)
class SocketInfo:
    """The result of socket.opened. Addresses are "ip:port", IPv6 in brackets."""

    remote_address: str | None
    local_address: str | None
    alpn: str | None = None  # the protocol agreed on in the TLS handshake
    proxy_address: str | None = None  # remote_address is then what it was asked for

_T_co = TypeVar("_T_co", covariant=True)

class SocketFuture(Generic[_T_co]):
    """A result to come, read-only. Any task may await it, any number of times."""

    # As socket.opened and socket.closed.
    def __init__(self, outcome: Never, drive: Never) -> None: ...
    def __await__(self) -> Generator[object, None, _T_co]:
        """Wait for the result; raises the failure. Cancelling settles nothing for others."""
    def done(self) -> bool:
        """Whether there is a result or a failure."""
    def result(self) -> _T_co:
        """The result at once; raises the failure, or PendingError before it has settled."""
    def exception(self) -> SocketError | None:
        """The failure at once, None if there is a result; or raises PendingError."""

# --- errors. Each is also a class that code catches which does not know this package.
#     A clean end is anyio.EndOfStream; two tasks in one direction is anyio.BusyResourceError.

class SocketError(Exception):
    """Any of them. The low-level error, if there was one, is its __cause__."""

    code: ClassVar[str] = "socket_error"  # stable, for programs; str(error) is for people

class InvalidAddressError(SocketError, ValueError):
    """Raised by connect(): the address names no TCP endpoint."""

    code: ClassVar[str] = "invalid_address"

class InvalidOptionError(SocketError, ValueError):
    """Raised by connect(): an option is unknown, has a bad value, or contradicts another."""

    code: ClassVar[str] = "invalid_option"

class PendingError(SocketError, RuntimeError):
    """The future was asked for its result before it had one."""

    code: ClassVar[str] = "pending"

class ConnectError(SocketError, OSError):
    """The connection could not be made. errno is the last attempt's, or None."""

    code: ClassVar[str] = "connect_failed"
    attempts: tuple[ConnectError, ...]  # one for each address tried, as they failed
    def __init__(self, message: str, *, attempts: tuple[ConnectError, ...] = ()) -> None: ...

class ResolveError(ConnectError, socket.gaierror):
    """The host name has no address."""

    code: ClassVar[str] = "resolve_failed"

class RefusedError(ConnectError, ConnectionRefusedError):
    """Nothing listens there."""

    code: ClassVar[str] = "refused"

class ConnectTimeoutError(ConnectError, TimeoutError):
    """connect_timeout, or the operating system's own limit, ran out."""

    code: ClassVar[str] = "connect_timeout"

class AddressNotAllowedError(ConnectError, PermissionError):
    """The Connector's policy forbids it. Nothing was sent there."""

    code: ClassVar[str] = "address_not_allowed"

class LoopError(ConnectError):
    """The connection would be to this process itself."""

    code: ClassVar[str] = "loop"

class ListenError(SocketError, OSError):
    """Raised by listen(): it cannot be listened there."""

    code: ClassVar[str] = "listen_failed"

class ProxyError(ConnectError):
    """The proxy could not be reached, refused, or gave no proper answer."""

    code: ClassVar[str] = "proxy_failed"
    status: int | None  # of HTTP, or SOCKS5's reply code; None if it gave none
    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        attempts: tuple[ConnectError, ...] = (),
    ) -> None: ...

class TLSError(ConnectError, ssl.SSLError):
    """The TLS handshake failed; str(error) says whose fault that is."""

    code: ClassVar[str] = "tls_failed"

class CertificateError(TLSError, ssl.SSLCertVerificationError):
    """The peer's certificate was turned away: expired, for others, or not trusted."""

    code: ClassVar[str] = "certificate_rejected"
    verify_code: int = 0
    verify_message: str = ""

class StartTLSError(SocketError, RuntimeError):
    """start_tls() cannot work here. The socket is as it was."""

    code: ClassVar[str] = "start_tls"

class DetachError(SocketError, RuntimeError):
    """There is no socket to give away. The Socket is as it was."""

    code: ClassVar[str] = "detach"

class EventLoopRunningError(SocketError, RuntimeError):
    """Raised by connect_socket_blocking(): an event loop runs in this thread."""

    code: ClassVar[str] = "event_loop_running"

class ClosedError(SocketError, anyio.ClosedResourceError):
    """The socket, or this half of it, was closed on our side."""

    code: ClassVar[str] = "closed"

class BrokenError(SocketError, anyio.BrokenResourceError):
    """The connection is unusable: reset, lost, aborted, or a send was cut short."""

    code: ClassVar[str] = "broken"

class HalfCloseError(SocketError, NotImplementedError):
    """The stream under Socket.wrap() cannot end one direction alone. Nothing has changed."""

    code: ClassVar[str] = "half_close"

class IncompleteReadError(SocketError, anyio.IncompleteRead):
    """The peer ended before all came that was to be received. receive() returns what did."""

    code: ClassVar[str] = "incomplete_read"
    def __init__(self, message: str) -> None: ...

class DelimiterNotFoundError(SocketError, anyio.DelimiterNotFound):
    """receive_until() has not found its delimiter. receive() returns what has come."""

    code: ClassVar[str] = "delimiter_not_found"
    def __init__(self, message: str) -> None: ...
