"""Runs the scenarios on workerd, the runtime of Workers, and on this package.

`nox -s conformance` installs workerd from npm. If that is not possible, set
ANYIO_CONNECT_SKIP_CONFORMANCE to 1. The tests need Linux, because the peer asks its kernel what
has arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from conformance import ledger, run, workerd
from conformance.certificates import Certificates
from conformance.run import Traces
from conformance.scenarios import SCENARIOS

#: The number of scenarios at a time. Most of them only wait most of the time.
_AT_ONCE = 8


@pytest.fixture(scope="session")
def traces(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Traces]:
    """The traces of all scenarios of the selected tests."""
    names: list[str] = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and "traces" in item.fixturenames
        and hasattr(item, "callspec")
    ]
    # If the ledger says that a step waits in vain, it does not wait for long.
    waits: dict[str, tuple[dict[str, str], dict[str, str]]] = {
        name: ({}, {}) for name in SCENARIOS
    }
    for differences in ledger.read().values():
        for difference in differences:
            if difference.scenario in waits:
                here, workers = waits[difference.scenario]
                here[difference.step] = difference.here
                workers[difference.step] = difference.workers

    directory = tmp_path_factory.mktemp("workerd")
    certificates = Certificates()
    with workerd.running(directory, certificates) as port, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(directory / "authority.pem"))

        def run_all(name: str) -> Traces:
            here, workers = waits[name]
            scenario = SCENARIOS[name]
            return Traces(
                run.run(scenario, run.on_workerd(port), certificates, workers),
                {
                    backend: run.run(scenario, run.on_backend(backend), certificates, here)
                    for backend in ("asyncio", "trio")
                },
            )

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(zip(names, pool.map(run_all, names), strict=True))
