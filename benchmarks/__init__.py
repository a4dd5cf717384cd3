"""How fast anyio_connect is beside what one would use instead: ``python -m benchmarks``.

``peer.py`` is a server in a process of its own, on a core of its own. Each file of ``contenders/``
is a client in a process of its own, and says how its kind of socket does the few things that
``work.py`` puts together. ``measure.py`` has the contenders take turns, ``report.py`` shows what
came of it. Everything stays on loopback.
"""
