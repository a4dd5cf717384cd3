"""The protocols of ``--starttls`` before TLS, with peers that break them in every way."""

from __future__ import annotations

import socket as stdlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import anyio
import pytest
from anyio.abc import SocketAttribute
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_connect import (
    ConnectError,
    DelimiterNotFoundError,
    IncompleteReadError,
    Socket,
    StartTLSError,
    TLSError,
    connect,
)
from anyio_connect._preludes import PRELUDES
from support.peers import Peer, has_ipv6, listening


@dataclass(frozen=True)
class Say:
    """What the server says."""

    data: bytes


@dataclass(frozen=True)
class Hear:
    """What the client has to say."""

    data: bytes


@dataclass(frozen=True)
class Forever:
    """What the server repeats until the client closes the connection."""

    data: bytes


Turn: TypeAlias = Say | Hear | Forever

EHLO = Hear(b"EHLO [127.0.0.1]\r\n")
LHLO = Hear(b"LHLO [127.0.0.1]\r\n")
STARTTLS = Hear(b"STARTTLS\r\n")
LDAP = Hear(b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037")
POSTGRES = Hear(b"\0\0\0\x08\x04\xd2\x16\x2f")
MYSQL_GREETING = (
    b"\x0a8.4.0\0" + b"THRD" + b"SALTSALT" + b"\0" + b"\xff\xff" + b"\x2d\x02\0\xff\xdf\x15"
)
MYSQL = Hear(b"\x20\0\0\x01" + b"\0\x8a\0\0" + b"\0\0\0\x01" + b"\x2d" + bytes(23))


def mysql_packet(body: bytes) -> Say:
    return Say(len(body).to_bytes(3, "little") + b"\0" + body)


#: What both sides say when all goes well. Some servers are more talkative than others.
AGREED: dict[str, tuple[str, list[Turn]]] = {
    "smtp": (
        "smtp",
        [
            Say(b"220 mail.example ESMTP\r\n"),
            EHLO,
            Say(b"250-mail.example\r\n250-SIZE 1000\r\n250 STARTTLS\r\n"),
            STARTTLS,
            Say(b"220 2.0.0 go ahead\r\n"),
        ],
    ),
    "smtp-many-lines": (
        "smtp",
        [
            Say(b"220-hello\r\n220-\r\n220 hello again\r\n"),
            EHLO,
            Say(b"250-mail.example\r\n" * 10 + b"250\r\n"),
            STARTTLS,
            Say(b"220-go\r\n220 ahead\r\n"),
        ],
    ),
    "smtp-bare": ("smtp", [Say(b"220\n"), EHLO, Say(b"250\n"), STARTTLS, Say(b"220\n")]),
    "lmtp": (
        "lmtp",
        [
            Say(b"220 mail\r\n"),
            LHLO,
            Say(b"250-mail\r\n250 STARTTLS\r\n"),
            STARTTLS,
            Say(b"220 go ahead\r\n"),
        ],
    ),
    "ftp": ("ftp", [Say(b"220 FTP\r\n"), Hear(b"AUTH TLS\r\n"), Say(b"234 go ahead\r\n")]),
    "ftp-many-lines": (
        "ftp",
        [
            Say(b"220-welcome\r\nto 123 files\r\n  220 of them are new\r\n220 FTP\r\n"),
            Hear(b"AUTH TLS\r\n"),
            Say(b"234 go ahead\r\n"),
        ],
    ),
    "nntp": ("nntp", [Say(b"200 news\r\n"), STARTTLS, Say(b"382 go ahead\r\n")]),
    "nntp-no-posting": ("nntp", [Say(b"201 news\r\n"), STARTTLS, Say(b"382 go ahead\r\n")]),
    "imap": (
        "imap",
        [Say(b"* OK IMAP\r\n"), Hear(b"A STARTTLS\r\n"), Say(b"A OK go ahead\r\n")],
    ),
    "imap-talkative": (
        "imap",
        [
            Say(b"* ok [CAPABILITY IMAP4rev2 STARTTLS] IMAP\r\n"),
            Hear(b"A STARTTLS\r\n"),
            Say(b"* CAPABILITY IMAP4rev2\r\n* OK wait\r\nA ok\r\n"),
        ],
    ),
    "pop3": ("pop3", [Say(b"+OK POP3 <1@mail>\r\n"), Hear(b"STLS\r\n"), Say(b"+OK\r\n")]),
    "sieve": (
        "sieve",
        [
            Say(b'"IMPLEMENTATION" "sieved"\r\n"STARTTLS"\r\nOK "hello"\r\n'),
            STARTTLS,
            Say(b'OK "go ahead"\r\n'),
        ],
    ),
    "ldap": (
        "ldap",
        [LDAP, Say(b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00")],
    ),
    "ldap-long-lengths": (
        "ldap",
        [
            LDAP,
            Say(
                b"\x30\x84\0\0\0\x28\x02\x01\x01\x78\x84\0\0\0\x1f\x0a\x01\x00\x04\x00\x04\x00"
                b"\x8a\x161.3.6.1.4.1.1466.20037"
            ),
        ],
    ),
    "postgres": ("postgres", [POSTGRES, Say(b"S")]),
    "mysql": ("mysql", [mysql_packet(MYSQL_GREETING), MYSQL]),
}

#: Each protocol once.
PLAIN = {name: AGREED[name] for name in PRELUDES if name in AGREED}


@pytest.mark.parametrize("name", PRELUDES)
def test_each_prelude_has_a_dialogue_here(name: str) -> None:
    assert name in PLAIN, (
        f"--starttls {name} is not tested: add to AGREED what both sides say when all goes well, "
        "and to REFUSED what a server may say instead; and test a real server in tests/interop, "
        "if a package of the system contains one"
    )


#: What servers say that have no TLS, or that refuse the client; and what the error says.
REFUSED: dict[str, tuple[str, list[Turn], str]] = {
    "smtp": (
        "smtp",
        [Say(b"220 mail\r\n"), EHLO, Say(b"250 mail\r\n"), STARTTLS, Say(b"502 5.5.1 no\r\n")],
        "the server refused STARTTLS: '502 5.5.1 no'",
    ),
    "smtp-greeting": (
        "smtp",
        [Say(b"554-go away\r\n554 you are on a list\r\n")],
        "the server refused the connection: '554 you are on a list'",
    ),
    "smtp-hello": (
        "smtp",
        [Say(b"220 mail\r\n"), EHLO, Say(b"550 who?\r\n")],
        "the server refused EHLO [127.0.0.1]: '550 who?'",
    ),
    "smtp-terminal-escape": (
        "smtp",
        [Say(b"554 \x1b[2J\xff\x00" + b"x" * 300 + b"\r\n")],
        "the server refused the connection: '554 \\x1b[2J\ufffd\\x00" + "x" * 190 + "'",
    ),
    "lmtp": (
        "lmtp",
        [Say(b"220 mail\r\n"), LHLO, Say(b"250 mail\r\n"), STARTTLS, Say(b"454 not now\r\n")],
        "the server refused STARTTLS: '454 not now'",
    ),
    "ftp": (
        "ftp",
        [Say(b"220 FTP\r\n"), Hear(b"AUTH TLS\r\n"), Say(b"534 no\r\n")],
        "the server refused AUTH TLS: '534 no'",
    ),
    "nntp": (
        "nntp",
        [Say(b"200 news\r\n"), STARTTLS, Say(b"580 no\r\n")],
        "the server refused STARTTLS: '580 no'",
    ),
    "imap-no": (
        "imap",
        [Say(b"* OK IMAP\r\n"), Hear(b"A STARTTLS\r\n"), Say(b"A NO not now\r\n")],
        "the server refused STARTTLS: 'A NO not now'",
    ),
    "imap-bad": (
        "imap",
        [Say(b"* OK IMAP\r\n"), Hear(b"A STARTTLS\r\n"), Say(b"A BAD what?\r\n")],
        "the server refused STARTTLS: 'A BAD what?'",
    ),
    "imap-preauth": (
        "imap",
        [Say(b"* PREAUTH you are root\r\n")],
        "the server refused the connection: '* PREAUTH you are root'",
    ),
    "imap-bye": (
        "imap",
        [Say(b"* OK IMAP\r\n"), Hear(b"A STARTTLS\r\n"), Say(b"* BYE bye\r\n")],
        "the server refused STARTTLS: '* BYE bye'",
    ),
    "pop3": (
        "pop3",
        [Say(b"+OK POP3\r\n"), Hear(b"STLS\r\n"), Say(b"-ERR what?\r\n")],
        "the server refused STLS: '-ERR what?'",
    ),
    "sieve": (
        "sieve",
        [Say(b'"SIEVE" "x"\r\nOK\r\n'), STARTTLS, Say(b'NO "not now"\r\n')],
        "the server refused STARTTLS: 'NO \"not now\"'",
    ),
    "ldap": (
        "ldap",
        [LDAP, Say(b"\x30\x11\x02\x01\x01\x78\x0c\x0a\x01\x02\x04\x00\x04\x05no\xc3\xb6p")],
        "the server refused STARTTLS: 'noöp (result 2)'",
    ),
    "postgres": ("postgres", [POSTGRES, Say(b"N")], "the server refused TLS: 'N'"),
    "postgres-error": (
        "postgres",
        [POSTGRES, Say(b"E\0\0\0\x10Msend money\0\0")],
        "the server refused TLS: 'E'",
    ),
    "mysql-no-tls": (
        "mysql",
        [mysql_packet(MYSQL_GREETING.replace(b"\xff\xff", b"\xff\xf7"))],
        "the server has no TLS; its version is '8.4.0'",
    ),
    "mysql-error": (
        "mysql",
        [mysql_packet(b"\xff\x10\x04Too many connections")],
        "the server refused the connection: 'Too many connections'",
    ),
}


@pytest.mark.parametrize("name", PRELUDES)
def test_each_prelude_has_a_refusal_here(name: str) -> None:
    refused = {protocol for protocol, *_ in REFUSED.values()}
    assert name in refused, f"add to REFUSED what a {name} server without TLS says"


#: Data that is no answer in the protocol. A server of another protocol often waits after its
#: greeting, so the greeting has to be enough to recognize it.
GARBAGE: dict[str, tuple[str, bytes]] = {
    **{name: (name, b"HTTP/1.1 400 Bad Request\r\n\r\n") for name in PRELUDES},
    "smtp-tls": ("smtp", b"\x15\x03\x03\0\x02\x02\x0a\r\n"),
    "smtp-ssh": ("smtp", b"SSH-2.0-OpenSSH_9.2p1\r\n"),
    "pop3-imap": ("pop3", b"* OK IMAP\r\n"),
    "imap-pop3": ("imap", b"+OK POP3\r\n"),
    "smtp-imap": ("smtp", b"* OK IMAP\r\n"),
    "imap-smtp": ("imap", b"220 mail\r\n"),
    "sieve-smtp": ("sieve", b"220 mail\r\n"),
    "smtp-digits": ("smtp", "\u0662\u0662\u0660 mail\r\n".encode()),
    "ldap-cut": ("ldap", b"\x30\x05\x02\x01\x01\x78\x07"),
    "ldap-endless": ("ldap", b"\x30\x80"),
    "ldap-other": ("ldap", b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00"),
    "mysql-short": ("mysql", b"\x05\0\0\0\x0a8.0\0"),
}

#: Servers that say more than a prelude accepts.
ENDLESS: dict[str, tuple[str, list[Turn]]] = {
    **{f"{name}-line": (name, [Forever(b"x")]) for name in ("imap", "smtp")},
    "smtp-lines": ("smtp", [Forever(b"220-and another thing\r\n")]),
    "ftp-lines": ("ftp", [Forever(b"220-and another thing\r\n")]),
    "sieve-lines": ("sieve", [Forever(b'"X" "Y"\r\n')]),
    "imap-lines": (
        "imap",
        [Say(b"* OK\r\n"), Hear(b"A STARTTLS\r\n"), Forever(b"* OK\r\n")],
    ),
    "ldap-length": ("ldap", [LDAP, Say(b"\x30\x84\x7f\xff\xff\xff"), Forever(b"\0")]),
    "ldap-length-of-length": ("ldap", [LDAP, Say(b"\x30"), Forever(b"\xff")]),
    "mysql-length": ("mysql", [Forever(b"\xff")]),
}


@asynccontextmanager
async def playing(
    turns: list[Turn], *, drip: bool = False, end: bool = False, host: str = "127.0.0.1"
) -> AsyncIterator[Socket]:
    """A socket to a peer that takes its turns."""

    async def play(peer: Peer) -> None:
        peer.sock.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
        for turn in turns:
            if isinstance(turn, Hear):
                assert await peer.receive_exactly(len(turn.data)) == turn.data
            elif isinstance(turn, Forever):
                with suppress(OSError):
                    while True:
                        await peer.send(turn.data * 1000)
            elif drip:
                for byte in turn.data:
                    await peer.send(bytes([byte]))
                    await anyio.lowlevel.checkpoint()
            else:
                await peer.send(turn.data)
        if end:
            peer.fin()

    async with listening(host) as listener:
        socket = connect(listener.address, secure_transport="starttls")
        async with socket, anyio.create_task_group() as tasks:
            tasks.start_soon(play, await listener.accept())
            yield socket
            tasks.cancel_scope.cancel()


def with_injected(turns: list[Turn], injected: bytes) -> list[Turn]:
    """The turns, with more data behind what the server says last, in the same segment."""
    last = max(n for n, turn in enumerate(turns) if isinstance(turn, Say))
    return [Say(turn.data + injected) if n == last else turn for n, turn in enumerate(turns)]


def table(rows: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", list(rows.values()), ids=list(rows))


@table(AGREED)
async def test_a_prelude_takes_nothing_that_follows_it(row: tuple[str, list[Turn]]) -> None:
    name, turns = row
    async with playing(with_injected(turns, b"injected")) as socket:
        await PRELUDES[name](socket)
        assert await socket.receive_exactly(8) == b"injected"


@table(PLAIN)
async def test_a_prelude_that_arrives_byte_by_byte(row: tuple[str, list[Turn]]) -> None:
    name, turns = row
    async with playing(turns, drip=True) as socket:
        await PRELUDES[name](socket)


@table(PLAIN)
async def test_tls_is_not_started_after_injected_bytes(row: tuple[str, list[Turn]]) -> None:
    """They are found among the data that was read ahead, or else in the handshake."""
    name, turns = row
    async with playing(with_injected(turns, b"220 injected\r\n")) as plain:
        await PRELUDES[name](plain)
        with pytest.raises((StartTLSError, TLSError), match=r"in the clear|without TLS"):
            await plain.start_tls().receive()


@table(REFUSED)
async def test_the_error_quotes_the_refusal(row: tuple[str, list[Turn], str]) -> None:
    name, turns, message = row
    async with playing(turns) as socket:
        with pytest.raises(ConnectError) as caught:
            await PRELUDES[name](socket)
        assert str(caught.value) == message


@table(GARBAGE)
async def test_another_protocol_is_recognized(row: tuple[str, bytes]) -> None:
    name, data = row
    async with playing([Say(data)]) as socket:
        with pytest.raises(ConnectError, match=r"another protocol|too long"):
            await PRELUDES[name](socket)


@table(ENDLESS)
async def test_an_endless_answer_is_an_error(row: tuple[str, list[Turn]]) -> None:
    name, turns = row
    async with playing(turns) as socket:
        with pytest.raises(ConnectError, match="too long for any known server"):
            await PRELUDES[name](socket)


@table(PLAIN)
async def test_a_server_that_hangs_up_in_the_middle_is_an_error(
    row: tuple[str, list[Turn]],
) -> None:
    name, turns = row
    for n, turn in enumerate(turns):
        if isinstance(turn, Say):
            for cut in {turn.data[:-1], b""}:
                async with playing([*turns[:n], Say(cut)], end=True) as socket:
                    with pytest.raises(ConnectError, match="hung up"):
                        await PRELUDES[name](socket)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_smtp_over_ipv6_names_an_ipv6_address() -> None:
    _, turns = AGREED["smtp"]
    played = [Hear(b"EHLO [IPv6:::1]\r\n") if turn == EHLO else turn for turn in turns]
    async with playing(played, host="::1") as socket:
        await PRELUDES["smtp"](socket)


class Canned:
    """A socket that receives ``data`` and then the peer's end, and never waits."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def receive_exactly(self, nbytes: int) -> bytes:
        if len(self.data) < nbytes:
            raise IncompleteReadError("the peer ended")
        found, self.data = self.data[:nbytes], self.data[nbytes:]
        return found

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        at = self.data.find(delimiter, 0, max_bytes)
        if at < 0:
            raise (
                IncompleteReadError("the peer ended")
                if len(self.data) < max_bytes
                else DelimiterNotFoundError("it is too long")
            )
        found, self.data = self.data[:at], self.data[at + len(delimiter) :]
        return found

    async def send(self, item: bytes) -> None:
        pass

    def extra(self, attribute: object) -> tuple[str, int]:
        assert attribute is SocketAttribute.local_address
        return "192.0.2.1", 1024


#: Pieces of what servers say, to be combined at random.
PIECES = sorted(
    {
        piece
        for _, turns, *_ in [*AGREED.values(), *REFUSED.values()]
        for turn in turns
        if isinstance(turn, Say)
        for piece in (turn.data, turn.data[:5], turn.data[5:], *turn.data.splitlines(True))
    }
)


@settings(max_examples=settings().max_examples * 3)
@given(
    name=st.sampled_from(sorted(PRELUDES)),
    pieces=st.lists(st.sampled_from(PIECES) | st.binary(max_size=8)),
)
def test_any_answer_is_taken_or_refused(name: str, pieces: list[bytes]) -> None:
    """Whatever the peer says, the prelude succeeds or raises a ConnectError."""
    prelude = PRELUDES[name](cast("Socket", Canned(b"".join(pieces))))
    with suppress(StopIteration, ConnectError):
        prelude.__await__().send(None)
        pytest.fail("the prelude waits for something")
