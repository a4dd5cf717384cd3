"""A process that forks while it has sockets. Each test runs in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()"),
]
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux resets a connection that a forked child has too"
)

BEGINNING = """
import gc, os, signal, socket, sys, threading, warnings
import anyio
from anyio_connect import BrokenError, Connector, WORKERS, connect, listen

warnings.simplefilter("ignore")
server = socket.create_server(("127.0.0.1", 0))
server.settimeout(10)

def accept():
    peer = server.accept()[0]
    peer.settimeout(10)
    return peer

class Child:
    # A forked process that runs a function, and lives until it is told to end.
    def __init__(self, function=lambda: None):
        done, self.end = os.pipe(), os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                function()
                code = 0
                os.write(done[1], b"x")
                os.close(self.end[1])
                os.read(self.end[0], 1)
            finally:
                os._exit(code)
        os.close(self.end[0])
        os.close(done[1])
        assert os.read(done[0], 1) == b"x", "the child failed"

    def stop(self):
        os.close(self.end[1])
        assert os.waitpid(self.pid, 0)[1] == 0

def run_in_thread(function):
    # In another thread, because the copy of the parent's event loop counts as running here.
    succeeded = threading.Event()

    def run():
        anyio.run(function)
        succeeded.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert succeeded.is_set(), "the function hangs" if thread.is_alive() else "it has failed"
"""

ENDING = """
name = sys.argv[1]
if name == "uvloop":
    import uvloop
    anyio.run(main, backend_options={"loop_factory": uvloop.new_event_loop})
else:
    anyio.run(main, backend=name)
print("done")
"""


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def loop(request: pytest.FixtureRequest) -> Any:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


def run(loop: str, program: str, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(BEGINNING + textwrap.dedent(program) + ENDING, encoding="utf-8")
    root = str(Path(__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, file, loop],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert ended.stdout == "done\n", ended.stderr
    assert ended.returncode == 0, ended.stderr


def test_close_ends_the_connection_though_a_child_has_it_too(loop: str, tmp_path: Path) -> None:
    program = """
    async def main():
        for half_open in False, True:
            s = connect(server.getsockname(), allow_half_open=half_open)
            await s.opened
            peer = accept()
            child = Child()
            await s.send(b"x")
            await s.close()
            assert peer.recv(10) == b"x"
            assert peer.recv(10) == b""
            child.stop()
    """
    run(loop, program, tmp_path)


@linux_only
def test_abort_resets_the_connection_though_a_child_has_it_too(loop: str, tmp_path: Path) -> None:
    program = """
    async def main():
        s = connect(server.getsockname())
        await s.opened
        peer = accept()
        child = Child()
        await s.writable.abort()
        try:
            peer.recv(10)
        except ConnectionResetError:
            pass
        else:
            raise AssertionError
        child.stop()
    """
    run(loop, program, tmp_path)


def test_a_socket_that_a_child_drops_goes_on_in_its_parent(loop: str, tmp_path: Path) -> None:
    """The child closes its copy, and does not unregister it from the parent's event loop."""
    program = """
    async def main():
        held = [connect(server.getsockname())]
        await held[0].opened
        peer = accept()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, peer.sendall, b"x")
            assert await held[0].receive() == b"x"  # it stays registered with the loop
        child = Child(held.clear)
        child.stop()
        async with anyio.create_task_group() as group:
            with anyio.fail_after(20):
                group.start_soon(held[0].send, b"y")
                group.start_soon(anyio.to_thread.run_sync, peer.sendall, b"z")
                assert await held[0].receive() == b"z"
        assert peer.recv(10) == b"y"
        await held[0].close()
        assert peer.recv(10) == b""
    """
    run(loop, program, tmp_path)


def test_a_child_does_not_use_the_watcher_of_its_parent(loop: str, tmp_path: Path) -> None:
    """The child forgets that watcher, and makes another one. The parent's goes on."""
    program = """
    async def watch(s, seen):
        try:
            await s.closed
        finally:
            seen.append(s)

    async def in_child():
        s = connect(server.getsockname())
        await s.opened
        peer = accept()
        async with anyio.create_task_group() as group:
            group.start_soon(watch, s, [])
            await anyio.wait_all_tasks_blocked()
            peer.close()
        await s.close()

    def run_in_child():
        from anyio_connect import _watch
        assert all(w._poller is None for w in _watch._watchers)
        run_in_thread(in_child)

    async def main():
        s = connect(server.getsockname())
        await s.opened
        peer = accept()
        seen = []
        async with anyio.create_task_group() as group:
            group.start_soon(watch, s, seen)
            await anyio.wait_all_tasks_blocked()
            child = Child(run_in_child)
            child.stop()
            assert not seen
            peer.close()
            with anyio.fail_after(20):
                while not seen:
                    await anyio.sleep(0.001)
        await s.close()
    """
    run(loop, program, tmp_path)


def test_no_lock_stays_taken_in_a_child(loop: str, tmp_path: Path) -> None:
    """Another thread of the parent has the locks at the moment of the fork."""
    program = """
    from anyio_connect import _loops, _tls_contexts

    async def in_child():
        async with await listen("127.0.0.1:0") as listener:
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, lambda s: s.aclose())
                async with Connector(max_connections=1).connect(listener.addresses[0]):
                    pass
                refused = Connector(policy=WORKERS).connect(listener.addresses[0])
                try:
                    await refused.opened
                except OSError:
                    group.cancel_scope.cancel()
        assert await _tls_contexts._contexts.get(())

    async def main():
        taken, release = threading.Event(), threading.Event()

        def hold():
            with _loops._lock, _tls_contexts._contexts._building:
                taken.set()
                release.wait(60)

        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        taken.wait(10)
        child = Child(lambda: run_in_thread(in_child))
        child.stop()
        release.set()
        thread.join()
    """
    run(loop, program, tmp_path)


def test_a_close_in_a_child_ends_our_side_and_the_parent_still_receives(
    loop: str, tmp_path: Path
) -> None:
    """The peer sees the end. The parent's event loop goes on to watch the socket."""
    program = """
    async def main():
        s = connect(server.getsockname(), allow_half_open=True)
        await s.opened
        peer = accept()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, peer.sendall, b"x")
            assert await s.receive() == b"x"  # it stays registered with the loop

        def close():
            thread = threading.Thread(target=anyio.run, args=(s.close,))
            thread.start()
            thread.join(20)
            assert not thread.is_alive()

        child = Child(close)
        child.stop()
        assert peer.recv(10) == b""
        async with anyio.create_task_group() as group:
            with anyio.fail_after(20):
                group.start_soon(anyio.to_thread.run_sync, peer.sendall, b"z")
                assert await s.receive() == b"z"
        peer.close()
        await s.close()
    """
    run(loop, program, tmp_path)
