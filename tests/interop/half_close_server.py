"""A TLS server on a free port of loopback that keeps sending after its client has ended.

It sends a megabyte to each client, reads until the client ends, answers with the number of bytes,
sends another megabyte, and ends too. The arguments are the file of its certificate and that of the
key. half_close_server.js does the same in Node.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading

MEGABYTE = b"x" * (1 << 20)


def serve(accepted: socket.socket, context: ssl.SSLContext) -> None:
    # With this option, only the client's close_notify is an end, and not a FIN alone.
    with context.wrap_socket(accepted, server_side=True, suppress_ragged_eofs=False) as connection:
        connection.sendall(MEGABYTE)
        count = 0
        while data := connection.recv(65536):
            count += len(data)
        connection.sendall(b"received %d bytes" % count + MEGABYTE)
        connection.unwrap()  # sends close_notify; that of the client has arrived already


def main(chain: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        print("listening on", port, flush=True)  # noqa: T201 - for the tests to read
        while True:
            accepted, _ = listener.accept()
            threading.Thread(target=serve, args=(accepted, context), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
