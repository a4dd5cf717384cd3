"""The contexts of TLS: the default ones, which are shared, and what makes an engine of one."""

from __future__ import annotations

import os
import ssl
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ._threads import Threads

#: How many default contexts are kept. Each holds the system's CA certificates: about a megabyte.
_MAX_CONTEXTS = 16

#: Runs the slow work on contexts: building one, and calls of contexts of another implementation.
threads = Threads("work on TLS contexts", 64)


class Contexts:
    """The default contexts, shared by all sockets without an ``ssl_context``, in all threads.

    The keys are the class of the context, which other code may replace (truststore does), and the
    ALPN protocols. The most recently used context comes last.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[type, tuple[str, ...]], ssl.SSLContext] = OrderedDict()
        self.after_fork()

    def after_fork(self) -> None:
        """Replace the lock in a forked child, where no thread exists that would release it."""
        self._building = threading.Lock()  # held by the thread that builds one

    async def get(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """Return the context for ``alpn``. Building one reads files and takes tens of ms."""
        context = self._find(alpn)
        return context if context is not None else await threads.run(partial(self._build, alpn))

    def _find(self, alpn: tuple[str, ...]) -> ssl.SSLContext | None:
        key = (ssl.SSLContext, alpn)
        try:
            self._kept.move_to_end(key)
            return self._kept[key]
        except KeyError:
            return None

    def _build(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """Build the context, unless another thread has just done so.

        The context is kept even if the calling task was cancelled meanwhile.
        """
        with self._building:
            context = self._find(alpn)
            if context is None:
                context = build_context(alpn)
                while len(self._kept) >= _MAX_CONTEXTS:
                    self._kept.popitem(last=False)
                self._kept[ssl.SSLContext, alpn] = context
            return context


_contexts = Contexts()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_contexts.after_fork)


def build_context(alpn: Sequence[str] = (), cafile: str | None = None) -> ssl.SSLContext:
    """Return a context for clients, with the settings of our default contexts.

    It trusts the certificate authorities of the system. ``cafile``: trust the certificates in this
    file instead.

    :raises OSError: the certificates cannot be read
    """
    context = ssl.create_default_context(cafile=cafile)
    if cafile == "":  # the standard library would treat it like None
        context.load_verify_locations(cafile="")
    if cafile is None:
        _load_for_certain(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a source of attacks, which TLS 1.3 has removed
    context.hostname_checks_common_name = False  # RFC 9525 6.3: it does not identify a server
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _load_for_certain(context: ssl.SSLContext) -> None:
    file = ssl.get_default_verify_paths().cafile
    try:
        empty = not context.cert_store_stats()["x509_ca"]
    except NotImplementedError:  # an injected truststore, which loads certificates later
        return
    if file and empty:
        # If OpenSSL could not open the file, for example because no descriptor was left, it did
        # not report that. Such a context would be kept, and would trust no server for ever.
        with suppress(ssl.SSLError):  # the file has no certificate
            context.load_verify_locations(file)


class EngineError(Exception):
    """Wraps any exception that an engine or a context raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


async def make_engine(
    context: ssl.SSLContext | None,
    alpn: tuple[str, ...],
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
    name: str | None,
) -> ssl.SSLObject:
    try:
        if context is None:
            context = await _contexts.get(alpn)
        chosen = context

        def make() -> ssl.SSLObject:
            return chosen.wrap_bio(incoming, outgoing, server_hostname=name)

        # The standard library's context reads no files here. Others may: truststore reads its CA
        # certificates.
        return make() if _is_native(context) else await threads.run(make)
    except Exception as exc:
        raise EngineError(exc) from None


def _is_native(context: Any) -> bool:
    """Whether the engines of ``context`` are the standard library's, without any change."""
    try:
        made_by = context.wrap_bio.__module__, context.sslobject_class
    except Exception:
        return False
    return made_by == ("ssl", ssl.SSLObject)
