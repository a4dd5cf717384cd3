"""The command line: both ends of a pipe on a TCP connection, or a demonstration."""

from __future__ import annotations

import argparse
import os
import select
import signal
import ssl
import stat
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread

from . import (
    ConnectError,
    ConnectTimeoutError,
    InvalidOptionError,
    Socket,
    SocketError,
    StartTLSError,
    connect,
)
from ._options import check_alpn
from ._preludes import PRELUDES
from ._tls_contexts import build_context
from ._tls_errors import TO_TRUST_IT

_CHUNK = 262144  # bytes; with fewer, most of the time would go into changing tasks and threads
#: How long the peer may be silent after the end of input before our side ends, in seconds, unless
#: --end-after says so. Many servers that speak TLS cannot half-close: they drop their answer.
_END_AFTER, _END_AFTER_TLS = 0.0, 5.0
_PRELUDE_TIMEOUT = 30  # seconds; otherwise two peers could wait for each other for ever

#: Advice in errors -> the option of the command line that does it.
_OPTIONS = {TO_TRUST_IT: "name its file with --cafile", "start_tls()": "--starttls"}

_DESCRIPTION = """\
Send standard input to HOST:PORT, end our side when it ends (with TLS: once the peer is silent),
and print what comes back until the peer ends. If the address is "demo", show what a
socket does, on loopback.
"""
_EPILOG = """\
exit status: 0 after a clean close; 1 after an error, such as a bad address, which is printed to
standard error; 2 for wrong usage; 130 after Ctrl-C; 141 if standard output is no longer read
"""


class _PipeError(Exception):
    """Standard input or output failed. A closed output (EPIPE) does not count as a failure."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    _occupy_standard_descriptors()
    parser = _parser()
    options = parser.parse_args(arguments)
    given = {
        name for name, value in vars(options).items() if value is not None and value is not False
    }
    if options.address == "demo" and not given <= {"address", "trio"}:
        parser.error("the demo takes no option but --trio")
    if not given & {"tls", "starttls"} and given & {"cafile", "alpn", "insecure"}:
        parser.error("--cafile, --alpn and --insecure need --tls or --starttls")
    # Ctrl-C ends this program like similar ones: at once, without a message.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    backend = "trio" if options.trio else "asyncio"
    try:
        if options.address == "demo":
            from ._demo import demo  # only when asked for

            anyio.run(demo, backend=backend)
            print(end="", flush=True)  # here, so that a broken pipe is noticed
        else:
            anyio.run(_talk, options, backend=backend)
    except (SocketError, _PipeError) as exc:
        notes = "".join(f" ({note})" for note in getattr(exc, "__notes__", ()))
        text = f"{exc}{notes}"
        for ours, option in _OPTIONS.items():
            text = text.replace(ours, option)
        _tell(text)
        return _leave(1)
    except BrokenPipeError:  # the reader of our output has closed it
        _die_of_sigpipe()
    return _leave(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anyio_connect",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("address", metavar="HOST:PORT", help='"[IPv6]:PORT" for IPv6, or "demo"')
    parser.add_argument(
        "--half-open", action="store_true", help="go on sending after the peer has ended"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="give up connecting after that long"
    )
    parser.add_argument(
        "--end-after",
        type=_seconds,
        metavar="SECONDS",
        help="after the end of input, end our side when the peer has been silent for that long "
        f"(default {_END_AFTER:g}; with TLS {_END_AFTER_TLS:g}, because many servers drop their "
        "answer when they see our end; inf: leave it to the peer)",
    )
    tls = parser.add_argument_group("TLS")
    mode = tls.add_mutually_exclusive_group()
    mode.add_argument("--tls", action="store_true", help="use TLS from the first byte")
    mode.add_argument(
        "--starttls",
        metavar="PROTOCOL",
        choices=sorted(PRELUDES),
        help=f"upgrade to TLS as a protocol does it: {', '.join(sorted(PRELUDES))}",
    )
    tls.add_argument("--cafile", metavar="FILE", help="trust the certificates in FILE instead")
    tls.add_argument(
        "--alpn", metavar="NAME", action="append", help="offer a protocol; may be repeated"
    )
    tls.add_argument(
        "--insecure", action="store_true", help="do not verify the peer's certificate (dangerous)"
    )
    parser.add_argument("--trio", action="store_true", help="run on trio instead of asyncio")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    return parser


def _seconds(text: str) -> float:
    """A number of seconds from 0, for argparse."""
    seconds = float(text)
    if not seconds >= 0:
        raise ValueError
    return seconds


class _Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version  # only when asked for

        try:
            print(f"anyio_connect {version('anyio_connect')}")
        except PackageNotFoundError:
            print("anyio_connect (not installed)")
        sys.exit()


async def _talk(options: argparse.Namespace) -> None:
    settings: dict[str, Any] = {"allow_half_open": options.half_open}
    if options.timeout is not None:
        settings["connect_timeout"] = options.timeout
    if options.tls or options.starttls:
        settings["secure_transport"] = "on" if options.tls else "starttls"
        if options.cafile is not None or options.insecure:
            settings["ssl_context"] = _context(options)
        elif options.alpn:
            settings["alpn"] = options.alpn
    end_after = options.end_after
    if end_after is None:
        end_after = _END_AFTER_TLS if "secure_transport" in settings else _END_AFTER
    async with connect(options.address, **settings) as socket:
        if not options.starttls:
            await _relay(socket, half_open=options.half_open, end_after=end_after)
            return
        seconds = min(_PRELUDE_TIMEOUT, settings.get("connect_timeout", _PRELUDE_TIMEOUT))
        with anyio.move_on_after(seconds) as waiting:
            await PRELUDES[options.starttls](socket)
        if waiting.cancelled_caught:
            raise ConnectTimeoutError(
                f"{options.address} did not agree to TLS within {seconds:g} seconds: "
                f"does it speak {options.starttls}?"
            )
        try:
            upgraded = socket.start_tls()
        except StartTLSError as exc:
            raise ConnectError(
                "the server sent unencrypted data after it had agreed to TLS: an attacker on the "
                "network path may have inserted it"
            ) from exc
        async with upgraded as secure:
            await _relay(secure, half_open=options.half_open, end_after=end_after)


def _context(options: argparse.Namespace) -> ssl.SSLContext:
    alpn = check_alpn("alpn", options.alpn) if options.alpn else ()
    try:
        context = build_context(alpn, options.cafile)
    except OSError as exc:
        if options.cafile is None:  # the system's certificates cannot be read
            raise
        raise InvalidOptionError(f"bad value for --cafile: {options.cafile!r}: {exc}") from exc
    if options.insecure:
        _tell("WARNING: --insecure: anybody on the network path can read and change everything")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _relay(socket: Socket, *, half_open: bool, end_after: float) -> None:
    """Copy standard input to the socket and the socket to standard output, both at once.

    ``end_after``: our side ends when the peer has been silent for that many seconds after the end
    of input.
    """
    # Kept here and not raised, because a task group would wrap them.
    failures: list[Exception] = []
    enough = False
    reading: anyio.CancelScope | None = None
    waiting: anyio.CancelScope | None = None
    over = False  # the peer has ended

    async def silence() -> None:
        nonlocal waiting
        if not over and end_after > 0:
            with anyio.CancelScope(deadline=anyio.current_time() + end_after) as waiting:
                await anyio.sleep_forever()

    async def upload() -> None:
        nonlocal reading
        try:
            while not enough:
                data = b""
                with anyio.CancelScope() as reading:
                    data = await _read_input()
                if reading.cancelled_caught:
                    return
                if not data:
                    await silence()
                    if not enough:
                        await socket.send_eof()
                    return
                await socket.send(data)
        except SocketError as exc:
            failures.append(exc)  # data that the peer sent before it hung up can still be read
        except _PipeError as exc:
            failures.append(exc)
            await socket.writable.abort(exc)  # the peer must not mistake the data for complete

    async with anyio.create_task_group() as group:
        group.start_soon(upload)
        try:
            while True:
                await _write_output(await socket.readable.receive(_CHUNK))
                if waiting is not None:
                    waiting.deadline = anyio.current_time() + end_after
        except anyio.EndOfStream:
            over = True
        except (SocketError, _PipeError, BrokenPipeError) as exc:
            failures.append(exc)
            group.cancel_scope.cancel()
        if not half_open:
            enough = True  # a send in flight may finish
            if reading is not None:
                reading.cancel()
        if waiting is not None:
            waiting.cancel()
    if failures:
        raise failures[0]
    await socket.close()
    await socket.closed


async def _read_input() -> bytes:
    try:
        if stat.S_ISREG(os.fstat(0).st_mode):  # always readable, and epoll refuses it
            return os.read(0, _CHUNK)
        if not _can_wait_for_input():
            return await anyio.to_thread.run_sync(os.read, 0, _CHUNK, abandon_on_cancel=True)
        while True:
            await anyio.wait_readable(0)
            with suppress(BlockingIOError):  # another program that reads the same input was faster
                return os.read(0, _CHUNK)
    except OSError as exc:
        raise _PipeError(f"cannot read standard input: {exc.strerror}") from exc


def _can_wait_for_input() -> bool:
    if sys.platform == "win32":  # Windows can wait only for sockets
        return False
    mode = os.fstat(0).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(0)


async def _write_output(data: bytes) -> None:
    try:
        if stat.S_ISREG(os.fstat(1).st_mode):
            _write_all(data)
        else:
            # In a thread: the write may block if a pipe has room for only a part of the data, and
            # sending must go on meanwhile.
            await anyio.to_thread.run_sync(_write_all, data, abandon_on_cancel=True)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise _PipeError(f"cannot write standard output: {exc.strerror}") from exc


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(1, view) :]
        except BlockingIOError:  # another program that shares it has made it non-blocking
            select.select([], [1], [])


def _occupy_standard_descriptors() -> None:
    """Open those of the descriptors 0 to 2 that are closed, so that no socket gets their number.

    There is nothing to read from them, and writing to them fails.
    """
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(descriptor)


def _tell(text: str) -> None:
    if sys.stderr is not None:  # None if it was closed at the start: then print() would use stdout
        print(f"anyio_connect: {text}", file=sys.stderr)


def _leave(status: int) -> int:
    """Return ``status``. If a thread still reads input, which nothing can stop, exit instead."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(0.1)  # an idle thread was asked to end, and ends soon
            if thread.is_alive():
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None:
                        stream.flush()
                os._exit(status)
    return status


def _die_of_sigpipe() -> None:
    """End by SIGPIPE, without a message, like a program that does not handle that signal."""
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
