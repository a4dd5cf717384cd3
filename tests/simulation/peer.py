"""The other side of a connection: a script's server or client, driven by the network's events."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from .certificates import contexts
from .messages import length
from .network import Network
from .plan import Plan
from .tcp import End

#: The first byte of a TLS handshake.
_HANDSHAKE = 0x16


class Peer:
    """Reads all it can unless it is paused, and records the data and the kind of end.

    It keeps two records: one of plain text, and one of data that arrived over TLS.
    """

    def __init__(self, network: Network, end: End, plan: Plan) -> None:
        self.network = network
        self.end = end
        self.reading = True
        #: Whether to answer a ClientHello that follows a complete message.
        self.may_upgrade = False
        self.got = {False: bytearray(), True: bytearray()}
        self.sent = {False: bytearray(), True: bytearray()}
        #: "eof", "reset", "truncated" (TLS without close_notify) or "tls error".
        self.ended: dict[bool, str | None] = {False: None, True: None}
        self.fin_wanted = self.reset_sent = self.closed = False
        self.bare = False  # ended TLS without close_notify
        #: An act of ours was cut short: some of `sent` may never have left.
        self.secured = False  # uses TLS, or tries to
        self.shaken = False  # its handshake is done
        self._read_delay = plan.read_delay
        self._context = contexts()[2 if plan.tls12 else 1]
        self._last_read = float("-inf")
        self._scheduled = False
        self._was_reset = False
        self._fin_sent = False
        self._queue = bytearray()
        self._later: list[Callable[[], None]] = []
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        end.changed = self._changed
        self.stir()

    # --- what a script does

    def send(self, data: bytes) -> None:
        def act() -> None:
            if self.closed or self.fin_wanted:
                return
            self.sent[self.secured] += data
            if self._tls is not None:
                try:
                    self._tls.write(data)
                except ssl.SSLError:
                    return
                self._queue += self._outgoing.read()
            else:
                self._queue += data
            self._flush()

        self._when_clear(act)

    def finish(self, *, notify: bool = True) -> None:
        """End our side, over TLS with close_notify unless that is switched off."""

        def act() -> None:
            if self.closed or self.fin_wanted:
                return
            self.bare = self._tls is not None and not notify
            if self._tls is not None and notify:
                with suppress(ssl.SSLError):  # it wants to read the other side's
                    self._tls.unwrap()
                self._queue += self._outgoing.read()
            self.fin_wanted = True
            self._flush()

        self._when_clear(act)

    def reset(self) -> None:
        if not self.closed:
            self.closed = self.reset_sent = True
            self._forget_unsent()
            self.end.linger0()
            self.end.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._forget_unsent()
            self.end.close()

    def stop(self) -> None:
        self.reading = False

    def go_on(self) -> None:
        self.reading = True
        self.stir()

    @property
    def all_has_arrived(self) -> bool:
        """Whether the other side has received everything that this side was to send."""
        return not self._queue and not self._later and not self.end.unacknowledged

    def stir(self, delay: float = 0.0) -> None:
        """Check everything again soon."""
        if not self._scheduled:
            self._scheduled = True
            self.network.later(delay, self._work)

    # --- what the network does

    def _changed(self, key: int) -> None:
        self.stir()

    def _work(self) -> None:
        self._scheduled = False
        if self.closed:
            return
        if self.reading:
            wait = self._last_read + self._read_delay - self.network.now
            if self._read_delay and wait > 1e-9:
                self.stir(wait)
            else:
                self._read()
        self._flush()

    def _read(self) -> None:
        while not self.closed:
            try:
                data = self.end.receive(4096 if self._read_delay else 65536)
            except BlockingIOError:
                return
            except OSError:
                self._note_end("reset")
                return
            if not data:
                self._note_end("eof")
                return
            self._last_read = self.network.now
            self._take(data)
            if self._read_delay:
                self.stir(self._read_delay)
                return

    def _note_end(self, how: str) -> None:
        if self._was_reset:
            how = "reset"
        if self.secured and how == "eof":
            how = "truncated"
        if self.ended[self.secured] is None:
            self.ended[self.secured] = how
            self.network.note(self.end.name, "sees", how)

    def _take(self, data: bytes) -> None:
        if self._tls is None:
            plain = self.got[False]
            plain += data
            at = self._client_hello()
            if at is None:
                return
            data = bytes(plain[at:])
            del plain[at:]
            self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
            self.secured = True
            self.network.note(self.end.name, "speaks TLS")
        self._incoming.write(data)
        try:
            if not self.shaken:
                self._tls.do_handshake()
                self.shaken = True
                later, self._later = self._later, []
                for act in later:
                    act()
            while found := self._tls.read(65536):
                self.got[True] += found
            self.ended[True] = self.ended[True] or "eof"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended[True] = self.ended[True] or "eof"
        except ssl.SSLError as exc:
            self.ended[True] = self.ended[True] or "tls error"
            self.network.note(self.end.name, "cannot continue TLS:", exc.reason)
        self._queue += self._outgoing.read()

    def _client_hello(self) -> int | None:
        """The offset at which TLS begins, if it is expected and has begun."""
        plain = self.got[False]
        if not self.may_upgrade:
            return None
        at = 0
        while (size := length(plain, at)) is not None:
            at += size
        return at if at < len(plain) and plain[at] == _HANDSHAKE else None

    def _flush(self) -> None:
        try:
            while self._queue:
                del self._queue[: self.end.send(self._queue)]
            if self.fin_wanted and not self._fin_sent:
                self._fin_sent = True
                self.end.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError as exc:
            self._forget_unsent()
            # The kernel reports a reset only once, here. A later receive only reports the end.
            self._was_reset = self._was_reset or exc.errno == errno.ECONNRESET
            self._queue.clear()
            if self.reading:
                self._read()

    # --- helpers

    def _when_clear(self, act: Callable[[], None]) -> None:
        """No unencrypted data of ours may get into the handshake."""
        if self.may_upgrade and not self.shaken:
            self._later.append(act)
        else:
            act()

    def _forget_unsent(self) -> None:
        """Remove the data that the kernel has not taken: it was not sent."""
        if self._tls is None and self._queue:
            del self.sent[False][-len(self._queue) :]
