"""For aiohttp: every socket is judged by an ``AddressPolicy``."""

from aiohttp import SocketFactoryType

from anyio_connect import AddressPolicy

__all__ = ("socket_factory",)

def socket_factory(policy: AddressPolicy) -> SocketFactoryType:
    """What makes sockets for an ``aiohttp.TCPConnector`` only where ``policy`` allows it."""
