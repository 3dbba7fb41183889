"""
README and docs/ are right: programs run, endpoint strings and commands parse.

Each page is one test, whose blocks share a namespace and a working directory.
What a page may use is in that directory (`write_files`), and nothing leaves the
machine: every name of a host is 127.0.0.1, the platform trusts our authority, and
the ports in `PORTS` stand for free ones. By the language of a block:

python
    It runs, with ``await`` at the top level where it likes. ``react(main)`` runs
    *main* to its end; a coroutine function called *serve* runs as long as the page.
    The HTML comment ``<!--- invisible-code-block: python`` holds what readers
    need not see.
output
    What the Python block before it has printed.
client-endpoint, server-endpoint
    Endpoint strings, one a line.
bash
    Every command that begins with ``twist`` or ``netsock`` is parsed by its options.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import shlex
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from traceback import format_exc
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from pyflakes.checker import Checker
from pyflakes.messages import UndefinedName
from sybil import Document, Example
from sybil.parsers.myst import CodeBlockParser
from twisted.application.twist._options import TwistOptions
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.task import deferLater
from twisted.python.reflect import ObjectNotFound, namedAny

import twisted_netsock
import twisted_netsock.testing
from tests.cpython.differences import DIFFERENCES
from tests.support.package_sources import PACKAGE
from tests.support.streams import in_thread
from twisted_netsock import ServerTLSSocketOptions, SocketOptions, TLSSocketOptions
from twisted_netsock import __main__ as runner
from twisted_netsock._endpoints import string_keys
from twisted_netsock.commands import Options as NetsockOptions
from twisted_netsock.testing import CertificateAuthority, ScriptedResolver

reactor: Any = installed_reactor

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
REFERENCE = ROOT / "docs" / "reference"
PAGES = [
    CONTRIBUTING,
    README,
    ROOT / "SECURITY.md",
    *(page for page in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in page.parts),
]

HOSTS = ("localhost", "example.com", "www.example.com", "api.example.com", "example.org")
PORTS = (443, 1080, 3128, 8000, 8007, 8443)
THREADED = {ROOT / "docs" / "how-to" / "blocking.md"}
"""Pages whose programs block: they run in a thread beside the reactor's."""

BLOCKING = re.compile(r"^from twisted_netsock import .*\bblocking\b", re.MULTILINE)
"""Of other pages, blocks that import that run there."""

PASSWORD = b"correct horse battery staple"
SECONDS_TO_SETTLE = 5.0


def _skip(example: Example) -> None:
    """Parse a block, and evaluate it elsewhere."""


class Block(NamedTuple):
    """A block of a page: the line it begins at, its language and its text."""

    line: int
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of *page* in these languages, in order."""
    return sorted(
        Block(example.line + example.parsed.line_offset, language, str(example.parsed))
        for language in languages
        for example in Document.parse(str(page), CodeBlockParser(language, _skip))
    )


def commands(page: Path) -> list[list[str]]:
    """Return the commands of *page* that are ``twist`` or ``netsock``, as lists of words."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            command: list[str] = []
            for word in [*words, ";"]:
                if word.strip("&|;<>"):
                    command.append(word)
                    continue
                if command and command[0].rpartition("/")[2] in {"twist", "netsock"}:
                    found.append(command)
                command = []
    return found


@pytest.fixture
def ports() -> dict[str, str]:
    """The ports that stand in the documents, and those that are used for them."""
    with contextlib.ExitStack() as probes:
        bound = [probes.enter_context(socket.socket()) for _ in PORTS]
        for probe in bound:
            probe.bind(("127.0.0.1", 0))
        numbers = [probe.getsockname()[1] for probe in bound]
    return {str(written): str(used) for written, used in zip(PORTS, numbers, strict=True)}


def with_ports(text: str, ports: dict[str, str]) -> str:
    """Return *text* with free ports for those that stand in it."""
    return re.sub(rf"(?<![\w.])({'|'.join(ports)})(?![\w.])", lambda found: ports[found[1]], text)


def write_files(folder: Path, authority: CertificateAuthority) -> None:
    """Write the certificates and keys that the documents speak of."""
    here = (*HOSTS, "127.0.0.1", "::1")
    for name, names in {"server": here, "both": here, "new": here, "client": ("client",)}.items():
        (folder / f"{name}.pem").write_bytes(authority.issue(*names).pem)
    for name in HOSTS:
        (folder / f"{name}.pem").write_bytes(authority.issue(name).pem)
    issued = authority.issue(*here)
    (folder / "chain.pem").write_bytes(issued.certificate_pem)
    (folder / "key.pem").write_bytes(issued.private_key_pem)
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    (folder / "platform.pem").write_bytes(authority.certificate_pem)
    (folder / "clients-ca.pem").write_bytes(authority.certificate_pem)
    (folder / "password.txt").write_bytes(PASSWORD + b"\n")
    (folder / "server.p12").write_bytes(
        pkcs12.serialize_key_and_certificates(
            b"server",
            issued.private_key,
            issued.certificate,
            None,
            BestAvailableEncryption(PASSWORD),
        )
    )


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: CertificateAuthority
) -> Iterator[None]:
    """A working directory, and a network that ends at this machine."""
    write_files(tmp_path, authority)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "platform.pem"))
    before = ScriptedResolver({host: ["127.0.0.1"] for host in HOSTS}).install()
    yield
    reactor.installNameResolver(before)
    if reactor.threadpool is not None:
        # A reload has started it, and its threads would outlive the tests.
        reactor._stopThreadPool()


class PageRunner:
    """Runs the Python blocks of one page on the reactor that runs already."""

    def __init__(self, page: Path, ports: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.page = page
        self.ports = ports
        self.namespace: dict[str, Any] = {"__name__": "__main__", "reactor": reactor}
        self.programs: list[Deferred[Any]] = []
        self.servers: list[Deferred[Any]] = []
        monkeypatch.setattr("twisted.internet.task.react", self.react)

    def react(self, main: Any) -> None:
        """Stand in for Twisted's, which would start and end the reactor."""
        running = Deferred.fromCoroutine(main(reactor))
        (self.servers if main.__name__ == "serve" else self.programs).append(running)

    async def run(self, block: Block) -> str:
        """Run *block* and what it starts; return what was printed."""
        code = compile(
            "\n" * block.line + with_ports(block.text, self.ports),
            f"<{self.page.name}>",
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                if self.page in THREADED or BLOCKING.search(block.text):
                    await in_thread(eval, code, self.namespace)
                else:
                    result = eval(code, self.namespace)
                    if inspect.iscoroutine(result):
                        await result
                while self.programs:
                    await self.programs.pop()
            for server in self.servers:
                if server.called:
                    await server
        except Exception:  # noqa: BLE001 - pytest would look for Python in the page
            pytest.fail(f"{self.page}, line {block.line}:\n{format_exc()}", pytrace=False)
        return printed.getvalue()

    async def end(self) -> None:
        """End the servers, and wait until what they began has ended too."""
        for server in self.servers:
            server.cancel()
            with contextlib.suppress(CancelledError):
                await server
        self.namespace.clear()
        end = reactor.seconds() + SECONDS_TO_SETTLE
        while reactor.seconds() < end and any(
            "netsock" in repr(reader) for reader in reactor.getReaders()
        ):
            await deferLater(reactor, 0.01)


PAGES_WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


def _name(page: object) -> str | None:
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else None


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=_name)
@pytest.mark.usefixtures("workplace")
async def test_programs_run(
    page: Path, ports: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = PageRunner(page, ports, monkeypatch)
    printed = ""
    try:
        for block in blocks(page, "python", "output"):
            if block.language == "python":
                printed = await runner.run(block)
            else:
                assert printed == block.text, f"line {block.line} of {page}"
    finally:
        await runner.end()


@pytest.mark.parametrize("page", PAGES, ids=_name)
@pytest.mark.usefixtures("workplace")
def test_endpoint_strings_are_endpoints(page: Path) -> None:
    for language, parse in (
        ("client-endpoint", clientFromString),
        ("server-endpoint", serverFromString),
    ):
        for block in blocks(page, language):
            for text in block.text.splitlines():
                parse(reactor, text)


@pytest.mark.parametrize("page", PAGES, ids=_name)
@pytest.mark.filterwarnings("ignore:twisted.web.resource._Unsafe:DeprecationWarning")
@pytest.mark.usefixtures("workplace")
def test_commands_are_understood(page: Path) -> None:
    for command in commands(page):
        options = runner._options() if command[0] == "netsock" else TwistOptions()
        if "--check" in command:
            with pytest.raises(SystemExit, match=r"^0$"):
                options.parseOptions(command[1:])
            continue
        options.parseOptions(command[1:])
        for given in options.subOptions.get("ports", []):
            # The plugin of a web server takes strings, and reads them when it starts.
            serverFromString(reactor, given)


def test_the_pages_hold_something_of_every_language() -> None:
    for language in ("python", "output", "client-endpoint", "server-endpoint"):
        assert any(blocks(page, language) for page in PAGES), language
    assert any(commands(page) for page in PAGES)


# Whole programs


_AWAITS = (ast.Await, ast.AsyncFor, ast.AsyncWith)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _awaits(node: ast.AST) -> bool:
    """Tell whether *node* awaits something, outside of functions."""
    return any(
        isinstance(child, _AWAITS) or (not isinstance(child, _FUNCTIONS) and _awaits(child))
        for child in ast.iter_child_nodes(node)
    )


def _stands(program: str) -> str:
    """Return the line that a program must begin with: none if it can be saved and run."""
    tree = ast.parse(program)
    missing = {
        message.message_args[0]
        for message in Checker(tree).messages
        if isinstance(message, UndefinedName)
    }
    parts = []
    if _awaits(tree):
        missing.discard("reactor")
        parts.append("inside async def main(reactor)")
    if missing:
        parts.insert(0, "continued")
    return f"# {', '.join(parts)}:" if parts else ""


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_program_can_be_saved_and_run_or_says_where_it_stands(page: Path) -> None:
    """In words that the landing page explains."""
    visible = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    first_lines = [program.partition("\n")[0] for program in visible]
    marks = [line if re.match("# (continued|inside)", line) else "" for line in first_lines]
    assert marks == [_stands(program) for program in visible]


# README


def _readme_commands() -> list[str]:
    return [block.text.strip() for block in blocks(README, "bash")]


def test_the_readme_begins_with_two_commands_of_one_line_each() -> None:
    first, second, *_ = _readme_commands()
    assert "\n" not in first + second
    assert first.endswith("twist netsock relay")
    assert second.endswith("nox -s tests")


def test_the_checks_call_the_tests_as_the_readme_does() -> None:
    assert _readme_commands()[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_figures_of_the_readme_are_those_of_the_performance_page() -> None:
    measured = (ROOT / "docs" / "explanation" / "performance.md").read_text()
    text = " ".join(README.read_text().split())
    figures = re.findall(r"(\d\.\d\d) times as many [^(]* \(`([\w-]+)`\)", text)
    assert len(figures) == 4
    for figure, scenario in figures:
        assert re.search(rf"^\| `{scenario}`: .* \| {figure} \[", measured, re.MULTILINE), scenario


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=_name)
def test_links_lead_to_files(page: Path) -> None:
    """Sphinx checks those within docs/."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


# Reference


def _documented() -> list[str]:
    """Return the names that the reference documents, with their modules."""
    names = []
    for page in sorted(REFERENCE.glob("*.md")):
        module = ""
        for directive, name in re.findall(
            r"^\.\. (\w+):: ([\w.]+)$", page.read_text(), re.MULTILINE
        ):
            if directive == "currentmodule":
                module = name
            elif directive.startswith("auto") and directive != "automodule":
                names.append(f"{module}.{name}")
    return names


PUBLIC_MODULES = (
    "twisted_netsock",
    "twisted_netsock.blocking",
    "twisted_netsock.chibi",
    "twisted_netsock.testing",
)


def test_the_reference_has_every_public_name() -> None:
    documented = _documented()

    def elsewhere(module: str, name: str) -> bool:
        """Tell whether it is documented where else it is public."""
        return any(
            f"{other}.{name}" in documented
            and getattr(namedAny(other), name) is getattr(namedAny(module), name)
            for other in PUBLIC_MODULES
        )

    missing = [
        f"{module}.{name}"
        for module in PUBLIC_MODULES
        for name in namedAny(module).__all__
        if f"{module}.{name}" not in documented and not elsewhere(module, name)
    ]
    assert missing == []


def test_the_reference_has_no_name_twice() -> None:
    documented = _documented()
    assert len(set(documented)) == len(documented)


def _rows(page: Path, first_heading: str) -> list[list[str]]:
    """Return the cells of the table whose first column has that heading."""
    table = re.search(
        rf"^\| {first_heading} .*\n\|[-| :]+\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE
    )
    assert table is not None
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))]
        for row in table[1].splitlines()
    ]


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


STRINGS_PAGE = REFERENCE / "endpoint-strings.md"


def test_the_reference_has_every_key_of_endpoint_strings() -> None:
    """And says rightly which prefix and side takes it."""
    others = ("node", "service", string_keys.PROXY_PASSWORD_FILE)
    plain = {*string_keys.keys_of(SocketOptions), *others}
    tls = {*string_keys.keys_of(TLSSocketOptions), string_keys.PASSWORD_FILE, string_keys.ENDPOINT}
    server = {*string_keys.keys_of(ServerTLSSocketOptions), string_keys.RELOAD_EVERY}
    expected = dict.fromkeys(server, "`netsock-tls`, servers")
    expected |= dict.fromkeys(tls, "`netsock-tls`")
    expected |= dict.fromkeys(plain, "both")
    expected |= dict.fromkeys((string_keys.SYSTEMD, string_keys.DESCRIPTOR), "both, servers")
    rows = _rows(STRINGS_PAGE, "Key")
    assert {_quoted(row[0])[0]: row[1] for row in rows} == expected
    assert len(rows) == len(expected)


def test_the_reference_has_the_names_that_twisted_uses_for_keys() -> None:
    rows = _rows(STRINGS_PAGE, "Twisted")
    documented = {key: _quoted(row[1])[0] for row in rows for key in _quoted(row[0])}
    assert documented == string_keys.TWISTED_KEYS


# What is documented about the package as a whole


def test_the_tree_of_errors_is_as_drawn() -> None:
    [tree] = blocks(ROOT / "docs" / "explanation" / "errors.md", "text")
    drawn = set()
    ancestors: list[type] = []
    for line in tree.text.splitlines():
        matched = re.fullmatch(r"([ │├└─]*)(\w+) *([\w., ]*)", line)
        assert matched is not None, line
        depth, name, others = len(matched[1]) // 4, matched[2], matched[3]
        cls = getattr(twisted_netsock, name)
        drawn.add(cls)
        assert cls.__bases__[0] is (ancestors[depth - 1] if depth else Exception)
        for other in filter(None, others.split(", ")):
            full = re.sub(r"^E\.", "twisted.internet.error.", other)
            assert issubclass(cls, namedAny(full if "." in full else f"builtins.{full}"))
        ancestors[depth:] = [cls]
    public = (getattr(twisted_netsock, name) for name in twisted_netsock.__all__)
    assert drawn == {
        each for each in public if isinstance(each, type) and issubclass(each, Exception)
    }


def test_the_layers_hold_every_module() -> None:
    rows = _rows(ROOT / "docs" / "explanation" / "design.md", "Layer")
    documented = [module for row in rows for module in _quoted(row[1])]
    names = {path.name for path in PACKAGE.iterdir()}
    package = {name.removesuffix(".py") for name in names - {"__pycache__", "py.typed"}}
    assert sorted(documented) == sorted(package - {"__init__", "_version"})


def test_the_differences_that_cpythons_tests_see_are_those_of_the_page() -> None:
    rows = _rows(ROOT / "docs" / "how-to" / "from-socket.md", "Different")
    assert rows == [[each.what, each.why] for each in DIFFERENCES]


SUPPORTED = ROOT / "docs" / "supported.md"


def test_the_oldest_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = dict(
        re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", each).groups()
        for each in project["dependencies"]
    )
    needed["Python"] = project["requires-python"].removeprefix(">=")
    documented = {row[0]: row[1] for row in _rows(SUPPORTED, r"\| From")}
    assert documented == {name: needed[name] for name in documented}
    readme = " ".join(README.read_text().split())
    assert f"Python {needed['Python']} or later and Twisted {needed['twisted']} or later" in readme


def _is_there(name: str) -> bool:
    if name.startswith("twist "):
        return name.rsplit(maxsplit=1)[-1] in {
            command for command, *_ in NetsockOptions.subCommands
        }
    try:
        namedAny(name)
    except (AttributeError, ObjectNotFound):
        return False
    return True


def test_what_is_said_to_be_there_is_there() -> None:
    rows = _rows(SUPPORTED, r"\| What there is")
    names = [name for row in rows for name in _quoted(row[1]) if name.startswith("twist")]
    assert len(names) > 4
    assert not [name for name in names if not _is_there(name)]


def test_what_is_looked_for_can_be_found() -> None:
    """What the test before this one relies on."""
    assert _is_there("twist netsock relay")
    assert _is_there("twisted_netsock.chibi")
    assert _is_there("twisted_netsock.Socket.recv")


def test_what_stands_beside_names_of_scheme_is_used_in_a_line_of_code() -> None:
    page = ROOT / "docs" / "coming-from-scheme.md"
    code = "".join(block.text for block in blocks(page, "python"))
    rows = re.findall(r"^\| (`[^|]*) \| (.*) \|$", page.read_text(), re.MULTILINE)
    documented = {
        name
        for _, python in rows
        for quoted in _quoted(python)
        for name in re.findall(r"[A-Za-z]\w+", quoted.replace("(…, Socket)", ""))
        if not quoted.endswith("…")
    }
    assert len(documented) > 80
    assert {name for name in documented if not re.search(rf"\b{name}\b", code)} == set()
