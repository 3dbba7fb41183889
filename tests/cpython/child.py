"""Runs one module of CPython's tests over our sockets, and prints how each test has ended."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import types
import unittest
from collections.abc import Iterator
from typing import Any

from tests.cpython import adapter
from twisted_netsock import ServerTLSSocketOptions, TLSSocketOptions, blocking

LIBRARIES = {
    "test_ftplib": "ftplib",
    "test_poplib": "poplib",
    "test_imaplib": "imaplib",
    "test_smtplib": "smtplib",
    "test_httplib": "http.client",
}
"""Whose sockets are ours; of other modules it is the test's own."""

CLASSES = {"test_ssl": ("SimpleBackgroundTests", "ThreadedTests")}
"""Those that connect; others are about parts that are not ours."""

SECONDS = 60
"""For one test."""


class Ends(unittest.TestResult):
    """Notes how each test ends, and ends those that last too long."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.ends: dict[str, str] = {}
        self._module = module

    def _note(self, test: Any, end: str) -> None:
        # Of a test with several parts, the worst counts.
        test = getattr(test, "test_case", test)
        name = f"{self._module}.{type(test).__name__}.{test.id().rpartition('.')[2]}"
        if self.ends.get(name, "passed") in {"passed", "skipped"}:
            self.ends[name] = end

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        signal.alarm(SECONDS)

    def stopTest(self, test: Any) -> None:
        signal.alarm(0)
        super().stopTest(test)

    def addSuccess(self, test: Any) -> None:
        self._note(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:
        self._note(test, "skipped")

    def addFailure(self, test: Any, err: Any) -> None:
        self._note(test, f"{err[0].__name__}: {err[1]}".splitlines()[0][:200])

    addError = addFailure

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self.addFailure(test, err)


def tests_of(suite: Any) -> Iterator[unittest.TestCase]:
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from tests_of(each)
        else:
            yield each


def use_our_context(module: Any) -> None:
    """Have *module*, which is ``test_ssl``, take our contexts where it makes a pair of them."""
    names = {
        module.SIGNED_CERTFILE: module.SIGNED_CERTFILE_HOSTNAME,
        module.SIGNED_CERTFILE2: module.SIGNED_CERTFILE2_HOSTNAME,
        module.NOSANFILE: module.NOSAN_HOSTNAME,
    }

    def testing_context(server_cert: str = module.SIGNED_CERTFILE, *, server_chain: bool = True):
        client = TLSSocketOptions(trusted_certificates=module.SIGNING_CA)
        trusted = module.SIGNING_CA if server_chain else None
        server = ServerTLSSocketOptions(certificates=server_cert, trusted_certificates=trusted)
        name = names[server_cert]
        return blocking.ssl_context(client), blocking.ssl_context(server), name

    module.testing_context = testing_context


def start_the_reactor(module: types.ModuleType) -> None:
    """Connect once: some tests count the threads that are left."""
    with (
        module.create_server(("127.0.0.1", 0)) as listener,
        module.create_connection(listener.getsockname()),
    ):
        listener.accept()[0].close()


def too_late(*_: object) -> None:
    raise TimeoutError(f"it lasts longer than {SECONDS} s")


def main(name: str) -> None:
    ours = adapter.make_module()
    module: Any = importlib.import_module(f"test.{name}")
    importlib.import_module(LIBRARIES.get(name, module.__name__)).socket = ours
    if name == "test_ssl":
        use_our_context(module)
    start_the_reactor(ours)
    signal.signal(signal.SIGALRM, too_late)
    wanted = CLASSES.get(name)
    found = tests_of(unittest.defaultTestLoader.loadTestsFromModule(module))
    suite = unittest.TestSuite(
        each for each in found if wanted is None or type(each).__name__ in wanted
    )
    result = Ends(name)
    printed, sys.stdout = sys.stdout, sys.stderr
    suite.run(result)
    print(json.dumps(result.ends), file=printed, flush=True)
    # Threads of a test that hangs would keep the process.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
