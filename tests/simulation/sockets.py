"""The part of ``socket.socket`` that the package uses, on the simulated network."""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from typing_extensions import Self

from anyio_connect._memory_tcp import accept, connect, error
from anyio_connect._watch import HUP, IN, OUT

from .network import FIRST_FD, Network
from .polling import Epoll
from .tcp import End, Wire

Address = tuple[Any, ...]


#: The TCP state of an unused socket (linux/tcp.h).
_TCP_CLOSE = 7


class Setting:
    """The network of new sockets, and the wires of their connections."""

    network: Network
    #: Makes the two wires of a new connection: from us, and from the other side.
    wires: Callable[[], tuple[Wire, Wire]]


#: The current setting.
setting = Setting()


class Socket:
    """The descriptor of a simulated connection or listener, or of a socket that is neither yet."""

    def __init__(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - the name in the standard library
        proto: int = 0,
        fileno: int | None = None,
    ) -> None:
        self.family = family
        self.type = type
        self.proto = proto
        self.watchers: list[Epoll] = []
        self.end: End | None = None  # after connect() was called
        self.options: dict[tuple[int, int], Any] = {}
        self._network = setting.network
        self._backlog: Backlog | None = None
        self._local: tuple[str, int] = ("::" if family == socket.AF_INET6 else "0.0.0.0", 0)
        if fileno is None:
            self._fd = self._network.open(self)
        else:
            self._fd = fileno
            self._take_over(self._network.replace(fileno, self))

    def _take_over(self, other: Any) -> None:
        """Take the place of ``other``, whose descriptor was detached."""
        self.watchers, self.options, self._local = other.watchers, other.options, other._local
        self._hold(other.end)

    @classmethod
    def of(cls, end: End, family: int) -> Socket:
        """The descriptor of a connection that was accepted."""
        sock = cls(family)
        sock._hold(end)
        return sock

    def _hold(self, end: End) -> None:
        self.end = end
        self._local = end.local
        end.changed = lambda key: self._network.wake(self, key)

    # --- descriptors

    def fileno(self) -> int:
        return self._fd

    def detach(self) -> int:
        fd, self._fd = self._fd, -1
        return fd

    def setblocking(self, flag: bool) -> None:
        assert not flag, "a blocking socket would stop the event loop"

    def gettimeout(self) -> float:
        return 0.0

    def getblocking(self) -> bool:
        return False

    def flags(self) -> int:
        if self.end is not None:
            return self.end.flags()
        if self._backlog is not None:
            return IN if self._backlog.queue else 0
        return OUT | HUP

    def close(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._network.close(fd)
        if self.end is not None:
            self.end.close()
        if self._backlog is not None:
            self._backlog.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= FIRST_FD:
            self._network.dropped += 1
            self._network.note("a socket was dropped without closing it")
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- making connections

    def bind(self, address: Address) -> None:
        self._check()
        host, port = address[:2]
        if port and (host, port) in self._network.hosts:
            raise error(errno.EADDRINUSE)
        self._local = (host, port or self._network.port())

    def connect(self, address: Address) -> None:
        self._check()
        host, port = address[:2]
        if self.type == socket.SOCK_DGRAM:  # is asked for the local address of a route
            self._local = (host, self._network.port())
            return
        if (host, port) in self._network.unreachable:
            raise error(errno.ENETUNREACH)
        wire, _ = setting.wires()
        end = End(self._network, f"client{len(self._network.ends)}", wire)
        local, bound = self._local
        end.local = (local if int(bound) else "10.0.0.1", bound or self._network.port())
        end.dialling = True
        self._hold(end)
        connect(self._network.hosts, end, (host, port))
        if not wire.delay:  # as on loopback, where packets arrive before the call returns
            self._network.run_due()
        raise BlockingIOError(errno.EINPROGRESS, "Operation now in progress")

    def listen(self, backlog: int = 128) -> None:
        self._check()
        self._backlog = Backlog(self._network, self, backlog)
        self._network.hosts[self._local] = self._backlog

    def accept(self) -> tuple[Socket, Address]:
        self._check()
        if self._backlog is None:
            raise error(errno.EINVAL)
        if not self._backlog.queue:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        sock = Socket.of(self._backlog.queue[0], self.family)
        end = self._backlog.queue.popleft()
        return sock, self._address(end.remote)

    # --- a connection

    def recv(self, most: int, flags: int = 0) -> bytes:
        return self._connected().receive(most, peek=bool(flags & socket.MSG_PEEK))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        return self._connected().send(data)

    def shutdown(self, how: int) -> None:
        self._connected().shutdown(how)

    def getsockname(self) -> Address:
        self._check()
        return self._address(self._local if self.end is None else self.end.local)

    def getpeername(self) -> Address:
        end = self._connected()
        if end.dead or end.connecting:
            raise error(errno.ENOTCONN)
        return self._address(end.remote)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        self._check()
        self.options[level, option] = value
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER) and self.end is not None:
            on, seconds = struct.unpack("ii", value)
            if on and not seconds:
                self.end.linger0()

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> Any:
        self._check()
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR):
            return 0 if self.end is None else self.end.take_error()
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO):
            return bytes([_TCP_CLOSE if self.end is None and self._backlog is None else 1])
        return self.options.get((level, option), bytes(buflen) if buflen else 0)

    # --- helpers

    def _check(self) -> None:
        if self._fd < 0:
            raise error(errno.EBADF)

    def _connected(self) -> End:
        self._check()
        if self.end is None:
            raise error(errno.ENOTCONN)
        return self.end

    def _address(self, address: tuple[str, int]) -> Address:
        return (*address, 0, 0) if self.family == socket.AF_INET6 else address


class Backlog:
    """The connections of a listening socket that were not accepted yet."""

    def __init__(self, network: Network, sock: Socket, most: int) -> None:
        self.queue: deque[End] = deque()
        self.served: list[End] = []  # every connection to this socket
        self._network = network
        self._sock = sock
        self._most = most
        self._address = (sock.getsockname()[0], sock.getsockname()[1])

    def syn(self, client: End) -> None:
        if len(self.queue) > self._most:
            return  # dropped; a real client would try again, but not within the time of a history
        _, wire = setting.wires()
        server = End(self._network, f"server{len(self._network.ends)}", wire)
        accept(client, server, self._ready)

    def _ready(self, server: End) -> None:
        if self._network.hosts.get(self._address) is not self:
            server.linger0()
            server.close()
            return
        self.served.append(server)
        self.queue.append(server)
        self._network.wake(self._sock, IN)

    def close(self) -> None:
        del self._network.hosts[self._address]
        while self.queue:
            end = self.queue.popleft()
            end.linger0()
            end.close()
