"""One command each for tests, types, lint, docs, examples and benchmarks."""

import os
import shutil
import tarfile
from pathlib import Path
from runpy import run_path

import nox
from nox.command import CommandFailed

nox.options.sessions = ["tests", "lint", "typing", "docs"]
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

REACTORS = ("epoll", "asyncio")
EVERY_REACTOR = ("select", "poll", "epoll", "asyncio", "uvloop")
GUARDED = (
    "tests/blocking/test_clients.py",
    "tests/blocking/test_data.py",
    "tests/blocking/test_servers.py",
    "tests/_tls/test_context.py",
    "tests/_endpoints/test_client.py",
    "tests/hostile/test_hostile_handshakes.py",
    "tests/_endpoints/test_inner_handshakes.py",
    "tests/_sockets/test_output_ports.py",
    "tests/_net/test_resolver.py",
    "tests/_sockets/test_serve.py",
    "tests/_tls/test_server_names.py",
    "tests/_tls/test_sessions.py",
    "tests/_sockets/test_socket.py",
    "tests/_sockets/test_streams.py",
    "tests/_sockets/test_tls_endings.py",
    "tests/_sockets/test_tls_socket.py",
    "tests/_endpoints/test_transport.py",
    "tests/_certificates/test_verification.py",
)
"""What also runs without the inner parts of libraries."""

PYTHONS = ["3.11", "3.12", "3.13"]
PROGRAMS = run_path(str(Path("tests", "programs", "table.py")))["ENVIRONMENTS"]


def run_tests(
    session: nox.Session, reactors: tuple[str, ...], again: str = "not once and not long"
) -> None:
    """Run the tests on each reactor, on every processor; some on the first alone."""
    # One more than there are processors: much of the time the tests wait.
    arguments = session.posargs or ["-q", "-n", str((os.cpu_count() or 1) + 1)]
    failed = []
    for number, reactor in enumerate(reactors, 1):
        session.log(f"the tests on the {reactor} reactor, {number} of {len(reactors)}")
        chosen = [] if reactor == reactors[0] else ["-m", again]
        try:
            session.run("pytest", *arguments, *chosen, env={"NETSOCK_REACTOR": reactor})
        except CommandFailed:
            failed.append(reactor)
    if failed:
        session.error(f"tests have failed on {' and '.join(failed)}")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the reactors that most applications use."""
    session.log(
        "installing what the tests need; with the tests, 5 to 10 minutes on two processors"
    )
    session.install("-q", "-e", ".[test]")
    run_tests(session, REACTORS)


@nox.session(name="tests-reactors")
def tests_reactors(session: nox.Session) -> None:
    """Run the tests on every reactor."""
    session.install("-q", "-e", ".[test]", "uvloop")
    run_tests(session, EVERY_REACTOR, again="not once")


@nox.session(name="tests-pythons", python=PYTHONS)
def tests_pythons(session: nox.Session) -> None:
    """Run the tests on every supported Python."""
    session.install("-q", "-e", ".[test]")
    run_tests(session, ("epoll",))


@nox.session(name="tests-wheel", python=PYTHONS, reuse_venv=False)
def tests_wheel(session: nox.Session) -> None:
    """Install the wheel into a fresh environment, and run the sdist's tests away from here."""
    made = Path(session.virtualenv.location, "made")
    session.install("-q", "hatch-fancy-pypi-readme>=24", "hatchling>=1.26")
    session.run("python", "-m", "hatchling", "build", "-d", str(made))
    [wheel], [sdist] = made.glob("*.whl"), made.glob("*.tar.gz")
    session.install("-q", f"{wheel}[test]")
    with tarfile.open(sdist) as archive:
        # Before Python 3.11.4 there are no filters, and an archive of our own needs none.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(made)  # noqa: S202 - the filter stands in the line above
    tree = made / sdist.name.removesuffix(".tar.gz")
    for package in ("twisted_netsock", "twisted"):
        shutil.rmtree(tree / package)
    session.chdir(tree)
    run_tests(session, ("epoll",))


@nox.session(name="tests-oldest")
def tests_oldest(session: nox.Session) -> None:
    """Run the tests with the oldest versions that are supported."""
    session.install("-q", "-e", ".[test]", "-c", "tests/oldest.txt")
    run_tests(session, REACTORS)


@nox.session(name="tests-dev")
def tests_dev(session: nox.Session) -> None:
    """Run the tests in Python's development mode, which finds what is misused or left open."""
    session.install("-q", "-e", ".[test]")
    arguments = session.posargs or ["-q", "-n", "auto"]
    session.run("pytest", *arguments, env={"PYTHONDEVMODE": "1"})


@nox.session(name="tests-guards")
def tests_guards(session: nox.Session) -> None:
    """Run some tests without the inner parts of pyOpenSSL, Twisted and crochet that we use."""
    session.install("-q", "-e", ".[test]")
    arguments = session.posargs or ["-q", "-n", "auto", *GUARDED]
    session.run("pytest", *arguments, env={"NETSOCK_HIDDEN": "all"})


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure what the tests reach, branches too."""
    session.install("-q", "-e", ".[test]")
    session.run("coverage", "erase")
    for reactor in REACTORS:
        session.run("coverage", "run", "-m", "pytest", "-q", env={"NETSOCK_REACTOR": reactor})
    session.run("coverage", "combine")
    session.run("coverage", "report", "--show-missing", "--skip-covered")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types, of the package and of users' programs: those by three checkers."""
    session.install(
        "-q", "-e", ".[test]", "mypy>=2", "mypy-zope>=1.0.14", "pyright[nodejs]>=1.1.400", "ty"
    )
    session.run("mypy")
    plain, endpoints = (
        Path("tests", "typing", name).resolve() for name in ("plain.py", "endpoints.py")
    )
    # Elsewhere, the package is one that is installed, and no settings hold.
    session.chdir(session.create_tmp())
    session.run("mypy", "--strict", "--config-file=", str(plain), str(endpoints))
    python = str(Path(session.bin, "python"))
    session.run("pyright", "--pythonpath", python, str(endpoints))
    session.run("ty", "check", "--python", python, str(endpoints))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format, and print the lines of code."""
    session.install("-q", "ruff>=0.15")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("python", "tests/support/code_lines.py")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, where every warning is an error, and a draft of the change log."""
    session.install("-q", "-e", ".[docs,test]")
    session.run("towncrier", "build", "--draft", silent=True)
    session.run("sphinx-build", "-W", "-n", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session
def picture(session: nox.Session) -> None:
    """Draw the README's picture of the relay's demonstration anew."""
    session.install("-q", "-e", ".", "rich")
    session.run("python", "docs/picture.py")


@nox.session
def packaging(session: nox.Session) -> None:
    """Build wheel and sdist, and check what an index and an installer will see."""
    session.install(
        "-q",
        "check-wheel-contents",
        "hatch-fancy-pypi-readme>=24",
        "hatchling>=1.26",
        "pyroma",
        "twine",
    )
    made = Path(session.create_tmp()).resolve()
    for old in made.iterdir():
        old.unlink()
    session.run("python", "-m", "hatchling", "build", "-d", str(made))
    [wheel], [sdist] = made.glob("*.whl"), made.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    session.run("check-wheel-contents", str(wheel))
    # Of 10; the rest is for an address to write to, which the place that hosts it stands for.
    session.run("pyroma", "--min=8", str(sdist))


@nox.session
def examples(session: nox.Session) -> None:
    """Run every code block of README and docs."""
    session.install("-q", "-e", ".[test]")
    session.run("pytest", "-q", "tests/project/test_documentation.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare with peers; name scenarios to run only those."""
    session.install("-q", "-e", ".", "uvloop", "trio", "anyio")
    session.run("python", "-m", "benchmarks", *session.posargs, env=dict(os.environ))


@nox.session
def soak(session: nox.Session) -> None:
    """Let good, slow, dying and hostile clients come, ``-- --seconds N`` for each reactor."""
    session.install("-q", "-e", ".[test]")
    run_long(session, "tests/hostile/test_soak.py", "NETSOCK_SOAK_SECONDS", REACTORS)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feed random input to whatever parses any, ``-- --seconds N`` in all."""
    session.install("-q", "-e", ".[test]")
    run_long(session, "tests/hostile/test_fuzz.py", "NETSOCK_FUZZ_SECONDS", REACTORS[:1])


@nox.parametrize("environment", list(PROGRAMS))
@nox.session
def programs(session: nox.Session, environment: str) -> None:
    """Run programs of others over ours; ``-- NAME`` chooses, ``-- --write`` keeps the table."""
    session.install("-q", "-e", ".[proxy]", *PROGRAMS[environment])
    session.run("python", "tests/programs/run.py", environment, *session.posargs)


WORKERS = (
    "anyio==4.16.0", "celery==5.7.0", "gevent==26.9.0", "gunicorn==27.0.1",
    "ipykernel==7.4.0", "ipython==9.18.1", "nbclient==0.11.0", "pytest-asyncio==1.5.0",
    "pytest-twisted==1.14.3", "redis==8.1.0", "uwsgi==2.0.31",
)  # fmt: skip
"""What runs programs in workers, pinned."""


WORKERS_TESTS = ("tests/workers", "tests/testing/test_plugin.py")


@nox.session
def workers(session: nox.Session) -> None:
    """Use blocking sockets in the workers of others; the table of docs/how-to/blocking.md."""
    session.install("-q", "-e", ".[test]", *WORKERS)
    # These are for the tests that run pytest themselves.
    others = ("-p", "no:asyncio", "-p", "no:twisted")
    session.run("pytest", "-q", "-n", "auto", *others, *(session.posargs or WORKERS_TESTS))


@nox.session
def cpython(session: nox.Session) -> None:
    """Run CPython's own tests over our blocking sockets; ``-- MODULE`` chooses."""
    session.install("-q", "-e", ".")
    session.run("python", "tests/cpython/run.py", *session.posargs)


@nox.session
def netns(session: nox.Session) -> None:
    """Put delay, loss and broken links between hosts; needs root and iproute2."""
    session.install("-q", "-e", ".[test]")
    for reactor in REACTORS:
        environment = {"NETSOCK_REACTOR": reactor, "NETSOCK_NETNS": "1"}
        session.run(
            "pytest", "-q", "tests/hostile/test_netns.py", *session.posargs, env=environment
        )


@nox.session
def testssl(session: nox.Session) -> None:
    """Have testssl.sh look for weaknesses in our TLS servers; needs it installed."""
    session.install("-q", "-e", ".[test]")
    environment = {"NETSOCK_TESTSSL": "1"}
    session.run("pytest", "-q", "tests/_tls/test_testssl.py", *session.posargs, env=environment)


def run_long(
    session: nox.Session, path: str, variable: str, reactors: tuple[str, ...], seconds: int = 600
) -> None:
    """Run the tests in *path* for the time that ``--seconds`` says, given in *variable*."""
    arguments = list(session.posargs)
    if arguments[:1] == ["--seconds"]:
        seconds = int(arguments[1])
        del arguments[:2]
    for reactor in reactors:
        environment = {"NETSOCK_REACTOR": reactor, variable: str(seconds)}
        session.run("pytest", "-q", "-s", "-o", "timeout=0", path, *arguments, env=environment)
