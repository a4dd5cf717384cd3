"""Addresses and options."""

from __future__ import annotations

import json

from conformance.scenario import scenario

# --- addresses


def address(value: object, *, opens: bool = True) -> None:
    """A scenario that connects to ``value``. With ``opens``, that is on this machine."""
    text = json.dumps(value)
    opened = "opened" if opens else ""
    scenario(f"address {text}", "One form of an address.", f"connect {text}\n{opened}")


for _address in (
    # A name and a port.
    "localhost:PORT",
    "LOCALHOST:PORT",
    "LocalHost:PORT",
    "localhost.:PORT",
    "localhost..:PORT",
    ".localhost:PORT",
    "local_host.invalid:PORT",
    "name.invalid:PORT",
    "-name.invalid:PORT",
    "bücher.invalid:PORT",
    "xn--bcher-kva.invalid:PORT",
    "\u24c1ocalhost:PORT",
    "local\u00adhost:PORT",
    "local%68ost:PORT",
    "%6cocalhost:PORT",
    f"{'a' * 64}.invalid:PORT",
    f"{'a.' * 130}invalid:PORT",
    # Without a name, without a port, or with a bad port.
    "",
    ":",
    ":PORT",
    "localhost",
    "localhost:",
    "localhost:0",
    "localhost:65536",
    "localhost:99999",
    "localhost:-1",
    "localhost:+PORT",
    "localhost:0PORT",
    "localhost:http",
    "localhost:PORT:PORT",
    "localhost:PORT ",
    " localhost:PORT",
    "local host:PORT",
    "localhost :PORT",
    "localhost: PORT",
    "local\thost:PORT",
    "localhost:PORT\n",
    "localhost\u0000:PORT",
    "localhost:\u0661",
    # IPv4: the usual form, and forms that only C libraries accept.
    "127.0.0.1:PORT",
    "127.0.0.1.:PORT",
    "127.0.0.01:PORT",
    "127.0.1:PORT",
    "127.1:PORT",
    "2130706433:PORT",
    "0x7f000001:PORT",
    "0x7f.1:PORT",
    "0177.0.0.1:PORT",
    "017700000001:PORT",
    "127.0.0.256:PORT",
    "127.0.0.1.1:PORT",
    "256:PORT",
    "0.0.0.0:PORT",
    "\uff11\uff12\uff17.0.0.1:PORT",
    # IPv6.
    "[::1]:PORT",
    "[0:0:0:0:0:0:0:1]:PORT",
    "[::ffff:127.0.0.1]:PORT",
    "[::FFFF:7F00:1]:PORT",
    "[::1%lo]:PORT",
    "[::1%25lo]:PORT",
    "[::1]",
    "[::1]:",
    "[::1]PORT",
    "[::1:PORT",
    "::1]:PORT",
    "::1:PORT",
    "[[::1]]:PORT",
    "[localhost]:PORT",
    "[127.0.0.1]:PORT",
    "[]:PORT",
    "[:::1]:PORT",
    "[::g]:PORT",
    "[v1.a]:PORT",
    # Parts of a URL.
    "tcp://localhost:PORT",
    "http://localhost:PORT",
    "//localhost:PORT",
    "localhost:PORT/",
    "localhost:PORT/path",
    "localhost/path:PORT",
    "localhost:PORT?query",
    "localhost:PORT#fragment",
    "user@localhost:PORT",
    "user:secret@localhost:PORT",
    "localhost\\:PORT",
    "localhost:PORT\\",
    "localhost,other.invalid:PORT",
    "localhost;:PORT",
    "local*:PORT",
    "unix:/nowhere",
    # A pair.
    {"hostname": "localhost", "port": "PORT"},
    {"hostname": "LOCALHOST", "port": "PORT"},
    {"hostname": "localhost.", "port": "PORT"},
    {"hostname": "127.0.0.1", "port": "PORT"},
    {"hostname": "127.1", "port": "PORT"},
    {"hostname": "::1", "port": "PORT"},
    {"hostname": "[::1]", "port": "PORT"},
    {"hostname": "[localhost]", "port": "PORT"},
    {"hostname": "bücher.invalid", "port": "PORT"},
    {"hostname": "localhost:1", "port": "PORT"},
    {"hostname": "", "port": "PORT"},
    {"hostname": " localhost", "port": "PORT"},
    {"hostname": "user@localhost", "port": "PORT"},
    {"hostname": "localhost/", "port": "PORT"},
    {"hostname": "localhost", "port": 0},
    {"hostname": "localhost", "port": 65536},
    {"hostname": "localhost", "port": -1},
    {"hostname": "localhost", "port": 1.5},
    {"hostname": "localhost", "port": "http"},
    {"hostname": "localhost", "port": ""},
    {"hostname": "localhost", "port": None},
    {"hostname": "localhost"},
    {"port": "PORT"},
    {"hostname": None, "port": "PORT"},
    {"hostname": 1, "port": "PORT"},
    {},
    # Something else.
    None,
    1,
    True,
    [],
    ["localhost", "PORT"],
):
    address(_address)

# --- options

for _options in (
    "{}",
    '{"secureTransport": "off"}',
    '{"secureTransport": "starttls"}',
    '{"secureTransport": "maybe"}',
    '{"secureTransport": "ON"}',
    '{"secureTransport": ""}',
    '{"secureTransport": null}',
    '{"secureTransport": true}',
    '{"allowHalfOpen": true}',
    '{"allowHalfOpen": 1}',
    '{"allowHalfOpen": "no"}',
    '{"allowHalfOpen": null}',
    '{"sni": "localhost"}',
    '{"alpn": ["h2"]}',
    '{"unknown": 1}',
    '{"expectedServerHostname": "localhost"}',
):
    scenario(
        f"options {_options}",
        "One form of the options.",
        f"""
        connect "localhost:PORT" {_options}
        opened
        """,
    )
