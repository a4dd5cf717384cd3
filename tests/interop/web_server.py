"""A web server of aiohttp's on a free port of loopback.

``/`` answers hello, and over a WebSocket it sends everything back. ``/inwards`` redirects to
another address of loopback.
"""

from __future__ import annotations

import asyncio
import socket

from aiohttp import WSMsgType, web


async def hello(request: web.Request) -> web.StreamResponse:
    websocket = web.WebSocketResponse()
    if not websocket.can_prepare(request):
        return web.Response(text="hello")
    await websocket.prepare(request)
    async for message in websocket:
        if message.type is WSMsgType.TEXT:
            await websocket.send_str(message.data)
    return websocket


async def inwards(request: web.Request) -> web.Response:
    raise web.HTTPFound("//127.0.0.2:8080/")


async def main() -> None:
    app = web.Application()
    app.add_routes([web.get("/", hello), web.get("/inwards", inwards)])
    runner = web.AppRunner(app)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    print("listening on", listener.getsockname()[1], flush=True)  # noqa: T201  # for the tests
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
