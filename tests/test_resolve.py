"""``Connector.resolve()``: the allowed addresses of a name, for other libraries."""

from __future__ import annotations

import math
import socket as stdlib
import sys
from typing import Any

import pytest
from anyio.abc import ByteStream

from anyio_connect import (
    WORKERS,
    AddressNotAllowedError,
    AddressPolicy,
    ConnectError,
    Connector,
    ConnectTimeoutError,
    InvalidAddressError,
    InvalidOptionError,
    LoopError,
    ResolveError,
    SocketAddress,
    listen,
)
from support.names import Names


async def test_the_allowed_addresses_in_the_order_of_dialling(names: Names) -> None:
    addresses = ["2606:4700::1", "2606:4700::2", "10.0.0.1", "1.1.1.1", "1.1.1.2"]
    names["host.test"] = [(ip, 0) for ip in addresses]
    raced = ["2606:4700::1", "1.1.1.1", "2606:4700::2", "1.1.1.2"]
    assert await Connector(WORKERS).resolve("host.test", 443) == raced
    assert await Connector(WORKERS, local_host="10.0.0.2").resolve("HOST.test", 443) == raced[1::2]
    everything = ["2606:4700::1", "10.0.0.1", "2606:4700::2", "1.1.1.1", "1.1.1.2"]
    assert await Connector().resolve("host.test", 443) == everything


async def test_an_address_stands_for_itself() -> None:
    assert await Connector().resolve("127.0.0.1", 1) == ["127.0.0.1"]
    assert await Connector().resolve("::1", 1) == ["::1"]
    assert await Connector().resolve("[::1]", 1) == ["::1"]


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the interface is Linux's")
async def test_a_zone_is_kept() -> None:
    assert await Connector().resolve("fe80::1%lo", 1) == ["fe80::1%lo"]
    assert await Connector().resolve("fe80::1%1", 1) == ["fe80::1%lo"]


async def test_at_most_64_addresses(names: Names) -> None:
    names["host.test"] = [(f"192.0.2.{n}", 0) for n in range(200)]
    assert len(await Connector().resolve("host.test", 1)) == 64


async def test_the_errors_of_resolve(names: Names) -> None:
    names["nowhere.test"] = stdlib.gaierror(stdlib.EAI_NONAME, "no such name")
    names["private.test"] = [("10.0.0.1", 0), ("192.168.0.1", 0)]
    names["silent.test"] = "silence"
    names["public.test"] = [("1.1.1.1", 0)]
    connector = Connector(WORKERS)
    with pytest.raises(ResolveError, match=r"cannot resolve 'nowhere\.test'"):
        await connector.resolve("nowhere.test", 1)
    with pytest.raises(AddressNotAllowedError, match=r"10\.0\.0\.1.*192\.168\.0\.1"):
        await connector.resolve("private.test", 1)
    with pytest.raises(ConnectError, match="can only reach IPv6"):
        await Connector(local_host="::1").resolve("public.test", 1)
    for limited, options in (
        (Connector(connect_timeout=0.01), {}),
        (Connector(), {"connect_timeout": 0.01}),
        (Connector(connect_timeout=3600), {"connect_timeout": 0.01}),
    ):
        with pytest.raises(ConnectTimeoutError, match=r"not resolved within 0\.01 seconds"):
            await limited.resolve("silent.test", 1, **options)


async def test_a_name_is_not_looked_up_for_a_forbidden_port(names: Names) -> None:
    with pytest.raises(AddressNotAllowedError, match="port 25"):
        await Connector(WORKERS).resolve("host.test", 25)
    with pytest.raises(AddressNotAllowedError, match="port 25"):
        await Connector(WORKERS).connect_socket("host.test:25")
    assert not names.asked.is_set()


async def test_a_call_may_lift_the_time_limit(names: Names) -> None:
    names["host.test"] = [("192.0.2.1", 0)]
    connector = Connector(connect_timeout=1e-9)
    found = await connector.resolve("host.test", 1, connect_timeout=math.inf)
    assert found == ["192.0.2.1"]


async def test_an_address_of_this_process_is_a_loop() -> None:
    connector = Connector(AddressPolicy(refuse_loops=True))
    async with await listen("127.0.0.1:0") as listener:
        port = int(listener.addresses[0].rpartition(":")[2])
        with pytest.raises(LoopError):
            await connector.resolve("127.0.0.1", port)


async def test_bad_input_raises_before_any_lookup(names: Names) -> None:
    connector = Connector()
    with pytest.raises(InvalidAddressError):
        await connector.resolve("127.1", 80)
    with pytest.raises(InvalidAddressError):
        await connector.resolve("host.test", 0)
    with pytest.raises(InvalidOptionError, match="connect_timeout"):
        await connector.resolve("host.test", 80, connect_timeout=0)
    for address in ("127.1:80", "host.test"):
        with pytest.raises(InvalidAddressError):
            await connector.connect_socket(address)
    with pytest.raises(InvalidOptionError, match="connect_timeout"):
        await connector.connect_socket("host.test:80", connect_timeout=-1)
    with pytest.raises(InvalidOptionError, match="keep_alive"):
        await connector.connect_socket("host.test:80", keep_alive=0.5)
    assert not names.asked.is_set()


async def test_a_policy_that_raises_forbids(names: Names) -> None:
    class Broken(AddressPolicy):
        def refusal(self, address: Any, port: int) -> str | None:
            raise ZeroDivisionError

    names["host.test"] = [("192.0.2.1", 0)]
    with pytest.raises(AddressNotAllowedError, match="raised ZeroDivisionError"):
        await Connector(Broken()).resolve("host.test", 1)


async def test_a_name_is_resolved_even_if_there_is_a_dialer(names: Names) -> None:
    async def dial(address: SocketAddress) -> ByteStream:
        raise AssertionError("nothing is dialled")

    names["host.test"] = [("192.0.2.1", 0)]
    assert await Connector(dialer=dial).resolve("host.test", 1) == ["192.0.2.1"]


async def test_resolve_may_be_the_resolver_of_another_connector() -> None:
    """It returns what a ``resolver`` has to return."""

    async def look_up(host: str, port: int) -> list[str]:
        return ["10.0.0.1", "1.1.1.1"]

    public = Connector(WORKERS, resolver=look_up)
    assert await Connector(resolver=public.resolve).resolve("host.test", 1) == ["1.1.1.1"]
