"""A simulated network under the package, and random histories on it which anybody can replay.

A *seed* gives a *history*: sockets, peers, what both do and when. It runs with virtual time, on
asyncio or trio as they are, over sockets that exist only in memory. The same seed gives the same
history, in every process. What comes of it is judged by what users are promised. One run takes a
few milliseconds; a fault is told as the command that replays it::

    PYTHONPATH=tests python -m simulation run asyncio --seed 0 --count 5000
    PYTHONPATH=tests python -m simulation replay asyncio 1234 --shrink
    PYTHONPATH=tests python -m simulation hunt

The modules, each with one job, from the bottom up (an arrow of imports goes upwards only):

``network``       virtual time, descriptors, who listens where, and the log
``tcp``           the package's two ends of a connection, with chance and a log
``polling``       ``select.epoll``, and the one that drives time while a loop waits in it
``sockets``       ``socket.socket`` as far as the package uses it
``schedulers``    asyncio, asyncio in uvloop's order, and trio, with the network beneath them
``patching``      puts all that under the package, for the time of a history
``certificates``  TLS contexts that are the same in every process
``messages``      messages that describe themselves, so that any loss shows
``peer``          the other side: a scripted client or server
``plan``          from a seed to a history
``world``         what is known while a history runs: sockets, peers, calls
``reading``       the ways to receive, and what may come of each
``run``           runs a history
``judge``         what is wrong with what came of it
``known``         faults that are known and not mended yet
``shrink``        a shorter history with the same fault
``kernel``        compares the simulated network with the kernel's
``broken``        faults put into the code by hand
``hunt``          shows that the simulation finds them

Linux only: it is Linux's TCP and epoll that are simulated.
"""
