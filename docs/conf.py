"""How Sphinx builds the documentation: offline, and with every warning an error."""

# ruff: noqa: ARG001 - Sphinx calls its handlers with more than they need

import inspect
import os
import re
import sys
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
from pygments.lexers.special import TextLexer

import twisted_netsock._public

# Autodoc looks for a class in the file of its module, so here each keeps its own.
twisted_netsock._public.public_in = lambda _module: lambda cls: cls

from twisted_netsock import ServerTLSSocketOptions, SocketOptions, options
from twisted_netsock._version import __version__

project = "twisted_netsock"
author = project_copyright = "the twisted_netsock maintainers"
release = version = __version__

sys.path.append(str(Path(__file__).parent))
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "breaks",
    "diagrams",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "twisted_netsock"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
python_maximum_signature_line_length = 88
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

# A name in single backticks in a docstring is a reference, and must lead somewhere.
default_role = "py:obj"
nitpicky = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

# Names of other projects link there only if this is set: their inventories are fetched then, and
# a build has to work without a network.
intersphinx_mapping = {}
if os.environ.get("NETSOCK_INTERSPHINX"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "twisted": ("https://docs.twisted.org/en/stable/api", None),
        "cryptography": ("https://cryptography.io/en/latest", None),
        "pytest": ("https://docs.pytest.org/en/stable", None),
    }

# So they lead nowhere otherwise, and are left out of the nitpicking.
nitpick_ignore_regex = [
    ("py:.*", r"(twisted|zope|OpenSSL|cryptography|service_identity|pytest)\..*"),
    # The same as annotations and docstrings write them.
    ("py:.*", r"Deferred|CancelledError|NoProtocol|I[A-Z]\w+|PrivateKeyTypes|(x509|ec)\.\w+"),
    # The standard library.
    ("py:.*", r"(collections|datetime|io|os|pathlib|socket|_?ssl|types|typing\w*)\..*"),
    ("py:.*", r"None|True|False|Any|Buffer|Callable|Iterable|Literal|Self|timedelta"),
    ("py:.*", r"AddressFamily|SocketKind|TLSVersion|copy|pickle|open|io"),
    # What stands behind public names: classes that users do not make, and aliases of
    # types, which reference/options.md explains.
    ("py:class", r"twisted_netsock\.(\w+\.)+(Base\w+|\w*Context\w*|Operating|\w+Fields|T|S)"),
    ("py:class", r"twisted_netsock\.(\w+\.)+((TLS)?(Socket)?Info|Attempts|BlockingOperating|T|S)"),
    ("py:class", r"twisted_netsock\.(\w+\.)+(Watch|Descriptor)"),
    ("py:class", r"(Any|Native)?Address|TLV|CertificateSource|KeySource|LocalAddress|Path"),
    ("py:class", r"ProtocolFactory"),
    (
        "py:class",
        r"SocketOption|Verifier|Version|CertificateProfile|RevocationListSource",
    ),
    # An attribute of the error that it is written beside.
    ("py:obj", r"partial"),
]

_FIELDS = {field.name for field in attrs.fields(ServerTLSSocketOptions)}
_PLAIN_FIELDS = {field.name for field in attrs.fields(SocketOptions)}
_NEVER_MADE_BY_USERS = {
    "BlockingSocket",
    "BlockingTLSSocket",
    "ClientEndpoint",
    "InputPort",
    "OutputPort",
    "ServerEndpoint",
    "Socket",
    "TLSSocket",
}


def _homes(target: str) -> list[str]:
    """Return where the name *target* of a docstring may be documented."""
    name = target.rpartition(".")[2]
    homes = [
        f"twisted_netsock.{target}",
        f"twisted_netsock.{name}",
        f"twisted_netsock.testing.{name}",
        f"twisted_netsock.blocking.{name}",
        f"twisted_netsock.chibi.{name}",
    ]
    if target == name:
        homes += [f"twisted_netsock.Socket.{name}", f"twisted_netsock.TLSSocket.{name}"]
        homes.append(f"twisted_netsock.blocking.BlockingSocket.{name}")
    if target in _PLAIN_FIELDS:
        homes.append("twisted_netsock.SocketOptions")
    elif target in _FIELDS:
        homes.append("twisted_netsock.TLSSocketOptions")
    return homes


def resolve_own_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Find what is documented under its public name, or as an option of a record."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    for home in _homes(node["reftarget"]):
        if home in domain.objects:
            return domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", home, node, contnode
            )
    return None


_SECTION = re.compile(r"(Returns|Errors|Cancelling):")
_NAMES = re.compile(r"(?P<names>[A-Z]\w+(?:, [A-Z]\w+)*):(?: |$)")


def _as_list(body: list[str]) -> list[str]:
    """Make each line of *body* that begins with names of errors an item of a list."""
    items: list[str] = []
    for line in body:
        if items and (line.startswith(" ") or items[-1].endswith(",")):
            items[-1] += " " + line.strip()
        elif items and not _NAMES.match(line) and not _NAMES.match(items[-1]):
            items[-1] += " " + line
        elif line:
            items.append(line)
    written = []
    for item in items:
        names = _NAMES.match(item)
        if names is None:
            written += ["", item]
        else:
            linked = ", ".join(f"`{name}`" for name in names["names"].split(", "))
            written += ["", f"* {linked}: {item[names.end() :]}"]
    return written


def write_sections_as_fields(
    app: Any, what: str, name: str, obj: Any, autodoc_options: Any, lines: list[str]
) -> None:
    """
    Turn the sections Returns, Errors and Cancelling into fields.

    Errors are what a Deferred fails with, where Raises has what the call itself
    raises. Annotations tell the types, so all that Returns says is text.
    """
    written = []
    section, body = None, []
    for line in [*lines, "end"]:
        if section and line and not line.startswith(" "):
            text = inspect.cleandoc("\n".join(body)).splitlines()
            if section == "errors":
                text = _as_list(text)
            written += [f":{section}:", *(f"    {each}".rstrip() for each in text), ""]
            section, body = None, []
        found = _SECTION.fullmatch(line)
        if found:
            section = found[1].lower()
        elif section:
            body.append(line)
        else:
            written.append(line)
    lines[:] = written[:-1]


def _default(field: Any) -> str:
    """Write the default of a record's field as a caller would."""
    value = field.default
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, timedelta):
        return f"timedelta(seconds={value.seconds})"
    return repr(value)


def _record_signature(record: Any) -> str:
    """Write what the constructor of a class of option records takes."""
    taken = getattr(options, f"{record.__name__.removesuffix('s')}Fields").__annotations__
    fields = (
        f"{field.name}: {taken[field.name].__forward_arg__} = {_default(field)}"
        for field in attrs.fields(record)
    )
    return f"(*, {', '.join(fields)})"


def write_signature(
    app: Any,
    what: str,
    name: str,
    obj: Any,
    autodoc_options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Show what a caller gives and gets: records by their fields, interfaces by name."""

    def shortened(text: str | None) -> str | None:
        return text and re.sub(r"<InterfaceClass (?:\w+\.)*(\w+)>", r"\1", text)

    if what == "class":
        if issubclass(obj, SocketOptions):
            return _record_signature(obj), None
        if attrs.has(obj):
            defaults = {field.name: _default(field) for field in attrs.fields(obj)}
            signature = re.sub(
                r"attr_dict\['(\w+)'\]\.default", lambda found: defaults[found[1]], signature
            )
        elif name.rpartition(".")[2] in _NEVER_MADE_BY_USERS:
            return "", None
    return shortened(signature), shortened(returned)


def show_public_bases(
    app: Any, name: str, obj: Any, autodoc_options: Any, bases: list[type]
) -> None:
    """Leave out the classes that only hold what two public ones share."""
    bases[:] = [base for base in bases if "._" not in base.__module__]


def setup(app: Any) -> None:
    """Connect what stands above."""
    app.connect("autodoc-process-bases", show_public_bases)
    app.connect("missing-reference", resolve_own_name)
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", write_sections_as_fields, priority=400)
    app.connect("autodoc-process-signature", write_signature)
    # Endpoint strings, which tests/project/test_documentation.py parses.
    for language in ("client-endpoint", "server-endpoint"):
        app.add_lexer(language, TextLexer)
