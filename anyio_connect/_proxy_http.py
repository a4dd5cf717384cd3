"""HTTP CONNECT (RFC 9110 section 9.3.6), by h11: how an HTTP proxy is asked for a tunnel."""

from __future__ import annotations

from base64 import b64encode
from http import HTTPStatus

import h11

from ._address import format_address
from ._copies import fresh
from ._errors import text_of
from ._proxy import Proxy, ProxyAnswerError
from ._transport import Transport

#: How long an answer may be up to the end of its head, in bytes, with informational answers.
_MOST = 16384

_NO_PROXY = "perhaps it is not a proxy, or does not allow that port"

#: What some statuses mean here, and what to do.
_MEANINGS = {
    400: _NO_PROXY,
    403: "its rules forbid that",
    404: _NO_PROXY,
    405: _NO_PROXY,
    500: "it failed, or could not connect there itself",
    501: _NO_PROXY,
    502: "it could not connect there itself",
    503: "it could not connect there itself, or is overloaded",
    504: "it had no answer from there in time",
}

#: 401 is for servers, but tinyproxy answers it for a wrong password.
_UNAUTHORIZED = frozenset({401, 407})

#: Statuses that would be the same for every target.
_OF_PROXY = _UNAUTHORIZED | {405, 501}


async def ask(transport: Transport, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy for a tunnel to ``host``. Afterwards, the transport leads to ``host``.

    This reads only the head of the answer. Data after a 2xx answer comes from the target, even if
    the answer has a ``Content-Length`` or ``Transfer-Encoding`` (RFC 9110 section 9.3.6).

    :raises ProxyAnswerError: the proxy refused, or its answer is not HTTP
    :raises anyio.EndOfStream: the proxy hung up before it answered
    :raises anyio.BrokenResourceError: the connection broke before the proxy answered
    """
    target = format_address(host, port)
    headers = [("Host", target)]
    if proxy.credentials is not None:
        token = b64encode(b":".join(proxy.credentials)).decode()
        headers.append(("Proxy-Authorization", f"Basic {token}"))
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST)
    head = connection.send(h11.Request(method="CONNECT", target=target, headers=headers))
    await transport.send((head or b"") + (connection.send(h11.EndOfMessage()) or b""))
    answer = await _answer(transport, connection, proxy)
    if not 200 <= answer.status_code < 300:
        raise _refused(answer, proxy)


async def _answer(transport: Transport, connection: h11.Connection, proxy: Proxy) -> h11.Response:
    """The head of the final answer."""
    read = bytearray()
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            exc.__traceback__ = None  # breaks a reference cycle with a frame of h11
            # Its text shows what the proxy sent, which may repeat our password.
            cause = fresh(exc) if proxy.credentials is None else None
            why = "it answered with something that is not HTTP: is it an HTTP proxy?"
            raise ProxyAnswerError(why) from cause
        if isinstance(event, h11.Response):
            return event
        if event is h11.NEED_DATA:
            if len(read) >= _MOST:
                raise ProxyAnswerError(f"its answer has a head of more than {_MOST} bytes")
            # A head ends with an empty line. So at least two more bytes are to come, or one if a
            # line has just ended.
            data = await transport.receive(1 if read.endswith((b"\n", b"\n\r")) else 2)
            read += data
            connection.receive_data(data)


def _refused(answer: h11.Response, proxy: Proxy) -> ProxyAnswerError:
    status = answer.status_code
    if proxy.credentials is None:
        said = text_of(answer.reason.decode("latin-1")) if answer.reason else ""
    else:  # the reason of the answer may repeat our password
        said = HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else ""
    why = _wants(answer, proxy) if status in _UNAUTHORIZED else _MEANINGS.get(status)
    text = f"it answered {status} {said}".rstrip()
    return ProxyAnswerError(
        f"{text}: {why}" if why else text, status, of_target=status not in _OF_PROXY
    )


def _wants(answer: h11.Response, proxy: Proxy) -> str:
    """The message for a proxy that wants other credentials (RFC 9110 section 11.7.1)."""
    wanted = b", ".join(value for name, value in answer.headers if name == b"proxy-authenticate")
    if wanted and b"basic" not in wanted.lower():
        return (
            "it wants another kind of authentication than Basic, which is the only one supported"
        )
    if proxy.credentials is None:
        return "it wants a user and a password: write them into the URL, http://user:password@..."
    return "it does not accept this user with this password"
