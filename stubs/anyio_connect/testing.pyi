"""anyio_connect.testing on one page: a network in memory, for tests. See __init__.pyi."""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from anyio import abc
from anyio.abc import ByteStream, TaskGroup

from anyio_connect import AddressPolicy, Connector, Socket, SocketAddress

if sys.version_info >= (3, 11):
    from typing import Never
else:
    from typing_extensions import Never

__all__ = ("MemoryListener", "Network")

class Network:
    """Hosts, names and connections in memory, with the rules of TCP and the loop's own time."""

    def __init__(
        self,
        *,
        latency: float = 0.0,  # seconds from one end to the other
        buffer_size: int = 65536,  # bytes that each end keeps, sent or received
    ) -> None: ...
    @property
    def latency(self) -> float:
        """Of connections that are yet to be made."""
    @latency.setter
    def latency(self, seconds: float) -> None: ...
    def add_host(self, name: str, *addresses: str) -> None:
        """Have a name exist, with these IP addresses, or one that is made up and public."""
    def listen(
        self,
        address: str | SocketAddress | tuple[str, int],  # as for connect(); port 0 is a free one
        *,
        allow_half_open: bool | None = None,
        close_timeout: float | None = None,
    ) -> MemoryListener:
        """Listen there, at once; the name exists from then on."""
    def fail(
        self,
        address: str | SocketAddress | tuple[str, int],
        failure: OSError | None,  # None: no more
    ) -> None:
        """Have each dial of the address fail so."""
    def silence(
        self, address: str | SocketAddress | tuple[str, int]
    ) -> AbstractContextManager[None]:
        """Have nothing arrive that is sent to or from there; after the block, all of it."""
    async def dial(self, address: SocketAddress, /) -> ByteStream:
        """A Dialer: raises OSError as the system does."""
    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a name that exists; otherwise socket.gaierror."""
    def connector(
        self,
        like: Connector | None = None,  # whose other values it has
        *,
        policy: AddressPolicy | None = None,
    ) -> Connector:
        """A Connector over this network."""

class MemoryListener(abc.Listener[Socket]):
    """Accepts connections; each becomes an open Socket."""

    # Listeners come from Network.listen().
    def __init__(self, memory: Never, where: Never, options: Never) -> None: ...
    @property
    def addresses(self) -> list[str]:
        """Where it listens: "ip:port"."""
    async def accept(self) -> Socket:
        """Wait for a connection."""
    async def serve(
        self, handler: Callable[[Socket], Any], task_group: TaskGroup | None = None
    ) -> None:
        """Run handler in a task for each connection, until cancelled or closed."""
    async def aclose(self) -> None:
        """Stop listening; connections that were accepted go on."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, of the first address."""
