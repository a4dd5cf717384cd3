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
    """A network in memory: it follows the rules of TCP, by the event loop's clock."""

    def __init__(
        self,
        *,
        latency: float = 0.0,  # seconds from one end to the other
        buffer_size: int = 65536,  # bytes in each send buffer and each receive buffer
    ) -> None: ...
    @property
    def latency(self) -> float:
        """Seconds from one end to the other, for connections that are made later."""
    @latency.setter
    def latency(self, seconds: float) -> None: ...
    def add_host(self, name: str, *addresses: str) -> None:
        """Add a name with these IP addresses, or with a made-up public one."""
    def listen(
        self,
        address: str | SocketAddress | tuple[str, int],  # as for connect(); port 0: any free one
        *,
        allow_half_open: bool | None = None,
        close_timeout: float | None = None,
    ) -> MemoryListener:
        """Listen at address, without waiting. A new name is added."""
    def fail(
        self,
        address: str | SocketAddress | tuple[str, int],
        failure: OSError | None,  # None undoes this
    ) -> None:
        """Make each dial of the address fail with failure."""
    def silence(
        self, address: str | SocketAddress | tuple[str, int]
    ) -> AbstractContextManager[None]:
        """Hold back everything that is sent to or from the address, until the block ends."""
    async def dial(self, address: SocketAddress, /) -> ByteStream:
        """Connect. This is a Dialer, and raises the OSError that the system would raise."""
    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a name; socket.gaierror if it does not exist."""
    def connector(
        self,
        like: Connector | None = None,  # the new one has the same values
        *,
        policy: AddressPolicy | None = None,
    ) -> Connector:
        """Return a Connector that uses this network."""

class MemoryListener(abc.Listener[Socket]):
    """Accepts connections. Each becomes an open Socket."""

    # Network.listen() returns these.
    def __init__(self, memory: Never, where: Never, options: Never) -> None: ...
    @property
    def addresses(self) -> list[str]:
        """The addresses that it listens at, as "ip:port"."""
    async def accept(self) -> Socket:
        """Wait for a connection, and return an open socket for it."""
    async def serve(
        self, handler: Callable[[Socket], Any], task_group: TaskGroup | None = None
    ) -> None:
        """Run handler in a task for each connection, until cancelled or closed."""
    async def aclose(self) -> None:
        """Stop listening. Accepted connections stay open."""
    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes, for the first address."""
