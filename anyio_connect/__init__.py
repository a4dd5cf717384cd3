"""A TCP socket for Python with the interface of the Workers ``connect()`` API, on AnyIO."""

from ._address import SocketAddress as SocketAddress
from ._connector import Connector as Connector
from ._connector import connect as connect
from ._dialer import Dialer as Dialer
from ._errors import AddressNotAllowedError as AddressNotAllowedError
from ._errors import BrokenError as BrokenError
from ._errors import CertificateError as CertificateError
from ._errors import ClosedError as ClosedError
from ._errors import ConnectError as ConnectError
from ._errors import ConnectTimeoutError as ConnectTimeoutError
from ._errors import DelimiterNotFoundError as DelimiterNotFoundError
from ._errors import DetachError as DetachError
from ._errors import EventLoopRunningError as EventLoopRunningError
from ._errors import HalfCloseError as HalfCloseError
from ._errors import IncompleteReadError as IncompleteReadError
from ._errors import InvalidAddressError as InvalidAddressError
from ._errors import InvalidOptionError as InvalidOptionError
from ._errors import ListenError as ListenError
from ._errors import LoopError as LoopError
from ._errors import PendingError as PendingError
from ._errors import ProxyError as ProxyError
from ._errors import RefusedError as RefusedError
from ._errors import ResolveError as ResolveError
from ._errors import SocketError as SocketError
from ._errors import StartTLSError as StartTLSError
from ._errors import TLSError as TLSError
from ._future import SocketFuture as SocketFuture
from ._listen import Listener as Listener
from ._listen import listen as listen
from ._options import SocketOptions as SocketOptions
from ._policy import UNRESTRICTED as UNRESTRICTED
from ._policy import WORKERS as WORKERS
from ._policy import AddressPolicy as AddressPolicy
from ._socket import Socket as Socket
from ._streams import ReadableStream as ReadableStream
from ._streams import WritableStream as WritableStream
from ._target import SocketInfo as SocketInfo

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

# Tracebacks, repr() and pickles then name the public place, which will not change.
_name = ""
for _name in __all__:
    if callable(globals()[_name]):  # the rest are values, which have their class's
        globals()[_name].__module__ = __name__
del _name
