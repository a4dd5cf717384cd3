"""The plain-text dialogue before TLS, for each protocol that ``--starttls`` supports.

A prelude asks for TLS and returns once the peer has agreed to it, so that ``start_tls()`` may
follow. If the peer, or an attacker, sends any unencrypted data after the go-ahead, TLS
does not begin: ``start_tls()`` fails if that data was read ahead, and otherwise the handshake
fails. The length of a reply is limited, but not the time that it takes.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

from anyio.abc import SocketAttribute

from ._errors import ConnectError, DelimiterNotFoundError, IncompleteReadError
from ._socket import Socket

#: How long one line or binary message of the peer may be, in bytes. Most are much shorter; lists
#: of capabilities are the longest.
_MAX_BYTES = 2048

#: How many lines one reply of the peer may have.
_MAX_LINES = 64

#: How much of the peer's text an error shows, in characters.
_SHOWN = 200


# --- mail, news and files: lines of text


async def _smtp(socket: Socket, *, hello: str = "EHLO") -> None:
    """SMTP (RFC 3207)."""
    await _reply(socket, "220", "the connection")
    name = _own_name(socket)
    await _command(socket, f"{hello} {name}", "250")
    await _command(socket, "STARTTLS", "220")


async def _lmtp(socket: Socket) -> None:
    """LMTP (RFC 2033), which is SMTP with another greeting."""
    await _smtp(socket, hello="LHLO")


async def _ftp(socket: Socket) -> None:
    """FTP (RFC 4217)."""
    await _reply(socket, "220", "the connection")
    await _command(socket, "AUTH TLS", "234")


async def _nntp(socket: Socket) -> None:
    """NNTP (RFC 4642)."""
    await _reply(socket, "20", "the connection")  # 200: posting allowed, 201: not allowed
    await _command(socket, "STARTTLS", "382")


async def _imap(socket: Socket) -> None:
    """IMAP (RFC 9051 6.2.1)."""
    # `* PREAUTH` is refused too: a session that is logged in already has no STARTTLS.
    await _status(socket, "* OK", ("* PREAUTH", "* BYE"), "the connection")
    await socket.send(b"A STARTTLS\r\n")
    await _status(socket, "A OK", ("A NO", "A BAD", "* BYE"), "STARTTLS", besides="* ")


async def _pop3(socket: Socket) -> None:
    """POP3 (RFC 2595 4)."""
    await _status(socket, "+OK", ("-ERR",), "the connection")
    await socket.send(b"STLS\r\n")
    await _status(socket, "+OK", ("-ERR",), "STLS")


async def _sieve(socket: Socket) -> None:
    """ManageSieve (RFC 5804 2.2), whose greeting lists what the server can do."""
    await _status(socket, "OK", ("NO", "BYE"), "the connection", besides='"')
    await socket.send(b"STARTTLS\r\n")
    await _status(socket, "OK", ("NO", "BYE"), "STARTTLS")


# --- directories and databases: binary messages


async def _ldap(socket: Socket) -> None:
    """LDAP (RFC 4511 4.14)."""
    # LDAPMessage { messageID 1, ExtendedRequest { requestName } }, in BER
    name = b"1.3.6.1.4.1.1466.20037"
    await socket.send(b"\x30\x1d\x02\x01\x01\x77\x18\x80\x16" + name)
    head = await _exactly(socket, 2)
    if head[0] != 0x30:
        raise _garbage(head)
    if head[1] & 0x80:  # the length has a length
        head += await _exactly(socket, head[1] & 0x7F)
    length = int.from_bytes(head[2:], "big") if head[1] & 0x80 else head[1]
    if length > _MAX_BYTES:
        raise _too_long()
    message = await _exactly(socket, length)
    try:
        _, _, rest = _element(message)  # messageID; 0 in a notice of disconnection
        kind, response, _ = _element(rest)
        _, code, rest = _element(response)
        _, _, rest = _element(rest)  # matchedDN
        _, diagnostic, _ = _element(rest)
    except IndexError:
        raise _garbage(head + message) from None
    if kind != 0x78:  # ExtendedResponse
        raise _garbage(head + message)
    if code != b"\0":
        number = int.from_bytes(code, "big")
        raise _refused("STARTTLS", f"{diagnostic.decode(errors='replace')} (result {number})")


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Split BER into the first element's tag, its contents, and what follows it."""
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise IndexError(length)
    return data[0], data[start : start + length], data[start + length :]


async def _postgres(socket: Socket) -> None:
    """PostgreSQL: an SSLRequest, and one byte in answer."""
    await socket.send(struct.pack("!II", 8, 80877103))
    answer = await _exactly(socket, 1)
    if answer in (b"N", b"E"):
        # An "E" is followed by a message. It is not shown: an attacker may have sent it
        # (CVE-2024-10977).
        raise _refused("TLS", answer.decode())
    if answer != b"S":
        raise _garbage(answer)


#: Flags of MySQL's protocol, and the number it has for UTF-8.
_CLIENT_PROTOCOL_41 = 0x0200
_CLIENT_SSL = 0x0800
_CLIENT_SECURE_CONNECTION = 0x8000
_UTF8MB4 = 45


async def _mysql(socket: Socket) -> None:
    """MySQL and MariaDB: their greeting, and an SSLRequest that is not answered."""
    head = await _exactly(socket, 4)
    length, sequence = int.from_bytes(head[:3], "little"), head[3]
    if length > _MAX_BYTES:
        raise _too_long()
    greeting = await _exactly(socket, length)
    if greeting[:1] == b"\xff":  # such as "Too many connections"
        raise _refused("the connection", greeting[3:].decode(errors="replace"))
    # Protocol 10, its version up to a zero, thread 4, salt 8 and filler 1; then capabilities.
    version, zero, rest = greeting[1:].partition(b"\0")
    if greeting[:1] != b"\x0a" or not zero or len(rest) < 15 or sequence != 0:
        raise _garbage(head + greeting)
    if not int.from_bytes(rest[13:15], "little") & _CLIENT_SSL:
        shown = version[:_SHOWN].decode(errors="replace")
        raise ConnectError(f"the server has no TLS; its version is {shown!r}")
    capabilities = _CLIENT_SSL | _CLIENT_PROTOCOL_41 | _CLIENT_SECURE_CONNECTION
    request = struct.pack("<IIB23x", capabilities, 1 << 24, _UTF8MB4)
    await socket.send(struct.pack("<I", len(request) | (sequence + 1) << 24) + request)


#: The preludes, by the name that ``--starttls`` takes. Each is called with a socket of
#: ``secure_transport="starttls"`` on which nothing was sent or received yet. It raises
#: ConnectError if the peer does not agree to TLS, or speaks another protocol.
PRELUDES: dict[str, Callable[[Socket], Awaitable[None]]] = {
    "ftp": _ftp,
    "imap": _imap,
    "ldap": _ldap,
    "lmtp": _lmtp,
    "mysql": _mysql,
    "nntp": _nntp,
    "pop3": _pop3,
    "postgres": _postgres,
    "sieve": _sieve,
    "smtp": _smtp,
}


# --- reading


async def _command(socket: Socket, command: str, wanted: str) -> None:
    await socket.send(command.encode() + b"\r\n")
    await _reply(socket, wanted, command)


async def _reply(socket: Socket, wanted: str, asked_for: str) -> None:
    """Receive one reply of SMTP, FTP or NNTP, whose code has to begin with ``wanted``.

    If it has several lines, the first ones are like ``250-text``, and the last is ``250 text``.
    """
    line = first = await _line(socket)
    code = first[:3]
    if not (len(code) == 3 and code.isascii() and code.isdigit() and first[3:4] in "- "):
        raise _garbage(first)
    if first[3:4] == "-":
        for _ in range(_MAX_LINES):
            line = await _line(socket)
            if line == code or line.startswith(f"{code} "):
                break
        else:
            raise _too_long()
    if not code.startswith(wanted):
        raise _refused(asked_for, line)


async def _status(
    socket: Socket, yes: str, no: tuple[str, ...], asked_for: str, *, besides: str | None = None
) -> None:
    """Receive lines up to one that begins with the word ``yes``, or with one of ``no``.

    Lines that begin with ``besides`` may come before it.
    """
    for _ in range(_MAX_LINES):
        line = await _line(socket)
        words = f"{line} ".upper()
        if words.startswith(f"{yes} "):
            return
        if words.startswith(tuple(f"{word} " for word in no)):
            raise _refused(asked_for, line)
        if besides is None or not line.startswith(besides):
            raise _garbage(line)
    raise _too_long()


async def _line(socket: Socket) -> str:
    """Receive one line."""
    try:
        line = await socket.receive_until(b"\n", _MAX_BYTES)
    except DelimiterNotFoundError as exc:
        raise _too_long() from exc
    except IncompleteReadError as exc:
        raise _hung_up() from exc
    return line.decode(errors="replace").rstrip("\r")


async def _exactly(socket: Socket, count: int) -> bytes:
    """Receive ``count`` bytes."""
    try:
        return await socket.receive_exactly(count)
    except IncompleteReadError as exc:
        raise _hung_up() from exc


def _own_name(socket: Socket) -> str:
    """Our name for SMTP: our IP address (RFC 5321 4.1.3), as a client need not have a name."""
    host = socket.extra(SocketAttribute.local_address)[0]
    address = ip_address(str(host).partition("%")[0])
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


# --- errors


def _refused(asked_for: str, answer: str) -> ConnectError:
    return ConnectError(f"the server refused {asked_for}: {answer[:_SHOWN]!r}")


def _garbage(answer: str | bytes) -> ConnectError:
    return ConnectError(
        f"the peer speaks another protocol, which begins with {answer[:_SHOWN]!r}: "
        "check the port; if it uses TLS from the first byte, there is nothing to upgrade"
    )


def _hung_up() -> ConnectError:
    return ConnectError("the peer hung up instead of agreeing to TLS")


def _too_long() -> ConnectError:
    return ConnectError("the peer's answer is too long for any known server")
