"""An HTTP server for the tests of adapters: HTTP/1.1 by h11 and HTTP/2 by h2, also over TLS."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import anyio
import h2.config
import h2.connection
import h2.events
import h11
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from anyio_connect import Socket, listen


class Reply(NamedTuple):
    content: bytes = b"hello"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    #: The connection is closed after it, without an announcement in the headers.
    hangs_up: bool = False


class Request(NamedTuple):
    version: str
    target: str
    content: bytes


Answer: TypeAlias = Callable[[Request], Reply]


class HTTPServer:
    """The requests to a server, the number of its connections, and how many of them are open."""

    def __init__(self, address: str, scheme: str, answer: Answer) -> None:
        self.address = address
        self.url = f"{scheme}://{address}/"
        self.requests: list[Request] = []
        self.connections = 0
        self.open = 0
        self._answer = answer

    async def serve(self, stream: ByteStream, protocol: str | None) -> None:
        self.connections += 1
        self.open += 1
        try:
            await (_http2 if protocol == "h2" else _http11)(stream, self.reply)
        finally:
            self.open -= 1

    def reply(self, request: Request) -> Reply:
        self.requests.append(request)
        return self._answer(request)


@asynccontextmanager
async def serving_http(
    answer: Answer = lambda _: Reply(),
    *,
    tls: ssl.SSLContext | None = None,
    address: str = "127.0.0.1:0",
) -> AsyncIterator[HTTPServer]:
    """Serve until the block is left. ``tls``: a context for servers. Its ALPN chooses HTTP/2."""
    async with await listen(address, allow_half_open=True) as listener:
        server = HTTPServer(listener.addresses[0], "https" if tls else "http", answer)

        async def handle(socket: Socket) -> None:
            async with socket:
                if tls is None:
                    await server.serve(socket, None)
                    return
                try:
                    stream = await TLSStream.wrap(
                        socket, server_side=True, ssl_context=tls, standard_compatible=False
                    )
                except ssl.SSLError:
                    return  # the client does not trust this server, and reports that to the test
                await server.serve(stream, stream.extra(TLSAttribute.alpn_protocol))

        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, handle)
            yield server
            group.cancel_scope.cancel()


async def _http11(stream: ByteStream, reply: Callable[[Request], Reply]) -> None:
    peer = h11.Connection(h11.SERVER)

    async def next_event() -> Any:
        while (event := peer.next_event()) is h11.NEED_DATA:
            try:
                peer.receive_data(await stream.receive())
            except anyio.EndOfStream:
                peer.receive_data(b"")
        return event

    while isinstance(head := await next_event(), h11.Request):
        content = b""
        while isinstance(part := await next_event(), h11.Data):
            content += part.data
        answer = reply(Request("HTTP/1.1", head.target.decode(), content))
        headers = [("content-length", str(len(answer.content))), *answer.headers]
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        said = peer.send(h11.Response(status_code=answer.status, headers=encoded))
        said += peer.send(h11.Data(answer.content)) or b""
        await stream.send((said or b"") + (peer.send(h11.EndOfMessage()) or b""))
        if answer.hangs_up or peer.our_state is h11.MUST_CLOSE:
            return
        peer.start_next_cycle()


async def _http2(stream: ByteStream, reply: Callable[[Request], Reply]) -> None:
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    peer.initiate_connection()
    targets: dict[int, str] = {}
    while True:
        await stream.send(peer.data_to_send())
        try:
            events = peer.receive_data(await stream.receive())
        except anyio.EndOfStream:
            return
        for event in events:
            if isinstance(event, h2.events.RequestReceived):
                targets[event.stream_id] = dict(event.headers)[b":path"].decode()
            elif isinstance(event, h2.events.StreamEnded):
                number = event.stream_id
                answer = reply(Request("HTTP/2", targets.pop(number), b""))
                headers = [(":status", str(answer.status)), *answer.headers]
                peer.send_headers(number, headers)
                peer.send_data(number, answer.content, end_stream=True)
