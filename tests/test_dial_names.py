"""How names, and addresses with a zone, become the addresses that are dialled."""

from __future__ import annotations

import errno
import socket as stdlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from anyio_connect import (
    ConnectError,
    ConnectTimeoutError,
    ResolveError,
    _lookup,
    _threads,
    connect,
)
from support.errors import is_copy
from support.names import Names
from support.peers import listening, needs_ipv6


@pytest.mark.parametrize(
    "answer",
    [
        stdlib.gaierror(stdlib.EAI_NONAME, "no such name"),
        UnicodeError("label too long"),
        [],
    ],
)
async def test_a_name_that_cannot_be_resolved(names: Names, answer: object) -> None:
    names["host.test"] = answer
    with pytest.raises(ResolveError, match=r"cannot resolve 'host\.test'") as caught:
        await connect("host.test:1").opened
    if isinstance(answer, Exception):
        assert is_copy(caught.value.__cause__, answer)
    else:
        assert caught.value.__cause__ is None


async def test_a_system_without_memory_for_a_literal(monkeypatch: pytest.MonkeyPatch) -> None:
    """getaddrinfo() may fail with any error of the system."""

    def no_more(*_: object, **__: object) -> Any:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(stdlib, "getaddrinfo", no_more)
    with pytest.raises(ResolveError, match=r"cannot resolve '::1': no memory"):
        await connect("[::1]:9").opened


async def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call only asks whether the host is an IP address."""
    flags: list[int] = []
    real = stdlib.getaddrinfo

    def getaddrinfo(*args: Any, **options: Any) -> Any:
        flags.append(options.get("flags", 0))
        return real(*args, **options)

    monkeypatch.setattr(stdlib, "getaddrinfo", getaddrinfo)
    async with listening() as listener, connect(f"localhost:{listener.address[1]}") as socket:
        await socket.opened
    assert flags == [stdlib.AI_NUMERICHOST, 0]


# --- zones


def test_a_zone_is_shown_by_name() -> None:
    name = stdlib.if_indextoname(1)
    assert str(_lookup.Endpoint(stdlib.AF_INET6, ("fe80::1", 9, 0, 1))) == f"[fe80::1%{name}]:9"
    assert str(_lookup.Endpoint(stdlib.AF_INET6, ("::1", 9, 0, 0))) == "[::1]:9"


@needs_ipv6
async def test_a_zone_reaches_the_kernel() -> None:
    async with listening("::1") as listener:
        port = listener.address[1]
        index = stdlib.if_nametoindex("lo")
        async with connect(f"[::1%{index}]:{port}") as socket:
            info = await socket.opened
            assert info.remote_address == f"[::1]:{port}"


async def test_a_zone_that_names_no_interface() -> None:
    with pytest.raises(ResolveError, match="no network interface 'nosuch0'"):
        await connect("[fe80::1%nosuch0]:9").opened


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may take that zone")
async def test_a_zone_that_the_address_cannot_have() -> None:
    with pytest.raises(ResolveError, match=r"only link-local addresses have zones: write '::1'"):
        await connect("[::1%lo]:9").opened


@needs_ipv6
@pytest.mark.skipif(sys.platform != "linux", reason="other systems may choose an interface")
async def test_a_link_local_address_needs_a_zone() -> None:
    with pytest.raises(ConnectError, match=r"needs a zone, .* like '\[fe80::1%eth0\]:80'"):
        await connect("[fe80::1]:80").opened


# --- lookups that hang


@contextmanager
def silent_dns(monkeypatch: pytest.MonkeyPatch, *, threads: int) -> Iterator[list[str]]:
    """Let lookups of names that begin with "silent" hang; yield the names that were looked up."""
    asked: list[str] = []
    go_on, ended = threading.Event(), threading.Semaphore(0)
    real = stdlib.getaddrinfo

    def getaddrinfo(host: bytes, *args: Any, **options: Any) -> Any:
        if options.get("flags"):  # this call only asks whether the host is an IP address
            return real(host, *args, **options)
        asked.append(host.decode())
        if not host.startswith(b"silent"):
            return real("127.0.0.1", *args, **options)
        try:
            go_on.wait(60)
            raise OSError("no answer")
        finally:
            ended.release()

    monkeypatch.setattr(stdlib, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(_lookup, "_lookups", _threads.Threads("look up names", threads))
    try:
        yield asked
    finally:
        go_on.set()
        for name in asked:
            assert not name.startswith("silent") or ended.acquire(timeout=60)


async def test_a_lookup_that_hangs_does_not_delay_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_dns(monkeypatch, threads=3):
        async with listening() as listener:
            for _ in range(2):
                with pytest.raises(ConnectTimeoutError, match="the name was not resolved within"):
                    await connect("silent.test:1", connect_timeout=0.05).opened
            async with connect(f"host.test:{listener.address[1]}") as socket:
                assert (await socket.opened).remote_address == "{}:{}".format(*listener.address)


async def test_a_lookup_fails_at_once_while_all_threads_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_threads, "_HANGS_ABANDONED", 0)
    with silent_dns(monkeypatch, threads=2) as asked:
        for _ in range(2):
            with pytest.raises(ConnectTimeoutError):
                await connect("silent.test:1", connect_timeout=0.05).opened
        socket = connect("host.test:1")
        with pytest.raises(ResolveError, match="all 2 threads that look up names hang") as caught:
            await socket.opened
        assert str(caught.value).startswith("cannot resolve 'host.test'")
        assert isinstance(socket.closed.exception(), ResolveError)
    assert asked == ["silent.test"] * 2


def test_up_to_64_lookups_run_at_a_time() -> None:
    assert _lookup._lookups.limit == 64
