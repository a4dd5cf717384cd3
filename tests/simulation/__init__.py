"""A simulated network under the package, and random histories on it that can be replayed.

A *seed* gives a *history*: sockets, peers, the acts of both, and their times. A history runs with
virtual time, on unchanged asyncio or trio, over sockets that exist only in memory. The same seed
gives the same history in every process. The result is compared with the promises to users. One run
takes a few milliseconds. If it finds a fault, it prints a command that replays the history::

    PYTHONPATH=tests python -m simulation run asyncio --seed 0 --count 5000
    PYTHONPATH=tests python -m simulation replay asyncio 1234 --shrink
    PYTHONPATH=tests python -m simulation hunt

The modules, each with one job, from the bottom up (a module imports only from those above it in
this list):

``network``       virtual time, descriptors, listeners, and the log
``tcp``           the two ends of a connection in memory, with random delays and a log
``polling``       ``select.epoll``, and one that advances virtual time while an event loop waits
``sockets``       the part of ``socket.socket`` that the package uses
``schedulers``    asyncio, asyncio in uvloop's order, and trio, over the simulated network
``patching``      makes the package use all that during a history
``certificates``  TLS contexts that are the same in every process
``messages``      messages that describe themselves, so that any loss shows
``peer``          the other side: a scripted client or server
``plan``          makes a history from a seed
``world``         the sockets, peers and calls of a running history
``reading``       the ways to receive, and the possible results of each
``run``           runs a history
``judge``         finds faults in the result of a history
``known``         known faults that are not fixed yet
``shrink``        finds a shorter history with the same fault
``kernel``        compares the simulated network with that of the kernel
``broken``        faults put into the code by hand
``hunt``          shows that the simulation finds these faults

Linux only: the simulation has the TCP and epoll of Linux.
"""
