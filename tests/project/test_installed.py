"""The package as it is built, and as it is found once installed."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

from tests.support.package_sources import PACKAGE, ROOT
from tests.support.processes import Ran, find, run

EPOCH = "1700000000"
"""Seconds: the time that everything in a build has."""

SUFFIXES = {
    "changes": {".md"},
    "docs": {".css", ".md", ".py", ".svg"},
    "benchmarks": {".c", ".h", ".py"},
    "tests": {"", ".der", ".p12", ".pem", ".py", ".txt"},
    "twisted": {".py"},
    "twisted_netsock": {".py", ".typed"},
}
"""What kinds of files are in the directories of an sdist."""

PLUGINS = {
    "twisted/plugins/netsock_commands.py",
    "twisted/plugins/netsock_endpoints.py",
}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="not installed: hatchling"
)


class Built(NamedTuple):
    """What was built, and the names of the files in it."""

    wheel: Path
    sdist: Path
    wheel_names: set[str]
    sdist_names: set[str]
    sdist_root: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if PACKAGE.parent != ROOT:
        pytest.skip("the package is not tested where its source is")
    wheel, sdist = build(ROOT, tmp_path_factory.mktemp("built"))
    with zipfile.ZipFile(wheel) as archive:
        wheel_names = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        members = [PurePosixPath(member.name) for member in archive if member.isfile()]
    (root,) = {member.parts[0] for member in members}
    sdist_names = {str(member.relative_to(root)) for member in members}
    return Built(wheel, sdist, wheel_names, sdist_names, root)


def build(tree: Path, directory: Path) -> tuple[Path, Path]:
    """Build *tree*, and return the wheel and the sdist."""
    done = run(
        sys.executable, "-m", "hatchling", "build", "-d", directory,
        cwd=tree, env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
    )  # fmt: skip
    assert done.code == 0, done.errors
    (wheel,) = directory.glob("*.whl")
    (sdist,) = directory.glob("*.tar.gz")
    return wheel, sdist


def package_files() -> set[str]:
    """Return the files of the package in this tree: modules, and the marker for types."""
    return {
        str(path.relative_to(PACKAGE.parent))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


# What is in it


def test_the_package_in_the_tree_is_modules_and_the_marker_for_types():
    """Whatever lies there would be shipped."""
    others = {name for name in package_files() if not name.endswith(".py")}
    assert others == {"twisted_netsock/py.typed"}


def test_the_wheel_holds_the_package_and_the_plugins_and_nothing_else(built):
    metadata = {name for name in built.wheel_names if ".dist-info/" in name}
    assert built.wheel_names - metadata == package_files() | PLUGINS
    assert {name.partition("/")[2] for name in metadata} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_the_plugins_are_no_package(built):
    """A file twisted/__init__.py or twisted/plugins/__init__.py would take Twisted's place."""
    assert {name for name in built.wheel_names if name.startswith("twisted/")} == PLUGINS


def test_the_sdist_holds_the_source_and_nothing_that_was_made(built):
    tops = {name.partition("/")[0] for name in built.sdist_names}
    assert tops == {
        ".ci",
        ".github",
        ".gitignore",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "SECURITY.md",
        "changes",
        "docs",
        "noxfile.py",
        "pyproject.toml",
        "benchmarks",
        "tests",
        "twisted",
        "twisted_netsock",
    }
    for directory, suffixes in SUFFIXES.items():
        names = [name for name in built.sdist_names if name.startswith(f"{directory}/")]
        assert {PurePosixPath(name).suffix for name in names} == suffixes, directory
    assert package_files() | PLUGINS <= built.sdist_names
    assert str(Path(__file__).relative_to(ROOT)) in built.sdist_names
    made = re.compile(r"__pycache__|\.py[co]$|dropin\.cache|\.coverage|_build/|\.pytest_cache")
    assert [name for name in built.sdist_names if made.search(name)] == []


def test_the_files_are_named_after_the_version(built):
    version = (PACKAGE / "_version.py").read_text()
    found = re.search(r'"(\d+\.\d+[^"]*)"', version)
    assert found is not None
    assert built.wheel.name == f"twisted_netsock-{found[1]}-py3-none-any.whl"
    assert built.sdist_root == f"twisted_netsock-{found[1]}"


def test_the_metadata_can_be_read_by_an_index(built):
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (each for each in built.wheel_names if each.endswith("/METADATA"))
        metadata = archive.read(name).decode()
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "\nDescription-Content-Type: text/markdown\n" in metadata
    for requirement in ("twisted[tls]", "pyopenssl", "crochet", "service-identity"):
        assert re.search(rf"^Requires-Dist: {re.escape(requirement)}", metadata, re.MULTILINE)
    # Of the README, which stands behind the fields.
    assert "](https://" in metadata
    assert re.findall(r"\]\((?!https://|#)[^)]*", metadata) == []
    # A file:// address, or a requirement by address, is refused there.
    assert not re.search(r"^Requires-Dist: .*@", metadata, re.MULTILINE)


def test_two_builds_are_equal_to_the_byte(built, tmp_path):
    """From another place, at another time, by somebody with other habits."""
    tree = tmp_path / "elsewhere"
    tree.mkdir()
    with tarfile.open(built.sdist) as archive:
        # Before Python 3.11.4 there are no filters, and an archive of our own needs none.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tree)
    tree /= built.sdist_root
    (tree / "PKG-INFO").unlink()
    for path in tree.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700 if path.is_dir() else 0o600 | (path.stat().st_mode & 0o100))
    (tmp_path / "again").mkdir()
    again = build(tree, tmp_path / "again")
    for first, second in zip((built.wheel, built.sdist), again, strict=True):
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes()


# What it does once installed


@pytest.fixture(scope="module")
def site(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that holds the wheel's files, and that nobody may write to."""
    target = tmp_path_factory.mktemp("site")
    done = run(
        sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps",
        "--no-index", "--no-compile", "--quiet", "--target", target, built.wheel,
    )  # fmt: skip
    if "No module named pip" in done.errors:
        pytest.skip("not installed: pip")
    assert done.code == 0, done.errors
    if os.geteuid() == 0 and find("setpriv") is None:
        pytest.skip("not installed: setpriv, without which root may write anywhere")
    directories = [target, *(path for path in target.rglob("*") if path.is_dir())]
    for directory in directories:
        directory.chmod(0o555)
    yield target
    for directory in directories:
        directory.chmod(0o755)


FROM_SITE = f"""
import sys
sys.path[:] = [entry for entry in sys.path if entry != {str(ROOT)!r}]
import twisted_netsock
assert twisted_netsock.__file__.startswith({{site!r}}), twisted_netsock.__file__
"""
"""Hides the tree that this environment may have the package from."""

RunsPython = Callable[[str], Ran]


def bound_by_permissions() -> tuple[str, ...]:
    """Return what to put before a command so that permissions hold for it, even for root."""
    if os.geteuid() != 0:
        return ()
    return ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-all")


@pytest.fixture(params=["wheel", "environment"])
def python(request: pytest.FixtureRequest, tmp_path: Path) -> RunsPython:
    """Run a script where the wheel is installed, or as the package is in this environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    before: tuple[str, ...] = ()
    prelude = ""
    if request.param == "wheel":
        site = str(request.getfixturevalue("site"))
        env["PYTHONPATH"] = site
        prelude = FROM_SITE.format(site=site)
        before = bound_by_permissions()

    def script(source: str) -> Ran:
        whole = prelude + textwrap.dedent(source)
        return run(*before, sys.executable, "-P", "-c", whole, env=env, cwd=tmp_path)

    return script


TWIST = """
import runpy
import sys
sys.argv = ["twist", *{arguments!r}]
runpy.run_module("twisted", run_name="__main__")
"""


def test_twist_lists_the_command(python):
    done = python(TWIST.format(arguments=["--help"]))
    assert (done.code, done.errors) == (0, "")
    assert re.search(r"^    netsock +\S", done.output, re.MULTILINE)
    # Twisted's own are still there.
    assert re.search(r"^    web +\S", done.output, re.MULTILINE)


def test_twist_makes_the_service(python):
    """Not only its name: with a mistake in an endpoint the service's own options speak."""
    arguments = ["netsock", "relay", "--listen", "netsock:0:nod=1", "--to", "tcp:127.0.0.1:80"]
    done = python(TWIST.format(arguments=arguments))
    assert done.code != 0
    assert "did you mean node?" in done.errors


def test_twisted_finds_the_endpoint_strings(python):
    done = python(
        """
        from twisted.internet import reactor
        from twisted.internet.endpoints import clientFromString, serverFromString
        from twisted_netsock.testing import CertificateAuthority

        pem = CertificateAuthority().issue("localhost").pem
        with open("both.pem", "wb") as file:
            file.write(pem)
        for endpoint in (
            clientFromString(reactor, "netsock:localhost:80"),
            clientFromString(reactor, "netsock-tls:localhost:443"),
            serverFromString(reactor, "netsock:0"),
            serverFromString(reactor, "netsock-tls:0:certificates=both.pem"),
        ):
            print(type(endpoint).__module__, type(endpoint).__name__)
        """
    )
    assert (done.code, done.errors) == (0, "")
    assert done.output.splitlines() == [
        "twisted_netsock ClientEndpoint",
        "twisted_netsock ClientEndpoint",
        "twisted_netsock ServerEndpoint",
        "twisted_netsock ServerEndpoint",
    ]


def test_the_plugins_import_little(python):
    """Every user of endpoint strings, of whatever kind, pays for what they import."""
    done = python(
        """
        import sys
        import twisted.plugins.netsock_commands
        import twisted.plugins.netsock_endpoints

        heavy = {"OpenSSL", "crochet", "cryptography", "twisted.internet.reactor"}
        print(*heavy.intersection(sys.modules))
        """
    )
    assert (done.code, done.errors, done.output.strip()) == (0, "", "")


def test_where_nobody_may_write_nothing_is_written(site, tmp_path):
    """Twisted would like to keep a list of the plugins beside them."""
    script = f"""
import sys
sys.path[:] = [entry for entry in sys.path if entry != {str(ROOT)!r}]
try:
    open({str(site / "twisted" / "plugins" / "file")!r}, "w").close()
except PermissionError:
    pass
else:
    sys.exit("the directory can be written to")
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
print(*(each.tapname for each in getPlugins(IServiceMaker)))
"""
    before = set(site.rglob("*"))
    done = run(
        *bound_by_permissions(), sys.executable, "-P", "-c", script,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": ""}, cwd=tmp_path,
    )  # fmt: skip
    assert (done.code, done.errors) == (0, "")
    assert "netsock" in done.output.split()
    assert set(site.rglob("*")) == before


def test_the_script_is_installed(site, tmp_path):
    script = site / "bin" / "netsock"
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run(sys.executable, "-P", script, "probe", "--jsn", "x", env=environment, cwd=tmp_path)
    assert (done.code, done.output) == (2, "")
    assert done.errors == "netsock: there is no option --jsn; did you mean --json?\n"
