"""The speed of anyio_connect, compared with its alternatives: ``python -m benchmarks``.

``peer.py`` is a server in its own process, on its own core. Each file of ``contenders/`` is a
client in its own process, and has the operations of one kind of socket. ``work.py`` combines these
operations. ``measure.py`` lets the contenders take turns, and ``report.py`` shows the results. All
connections use loopback.
"""
