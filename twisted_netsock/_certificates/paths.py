"""
A second opinion on the certificates of a server: another path to a trusted one (RFC 4158).

OpenSSL follows one path and does not come back from a certificate that has expired or may not
be where it stands, though the server has sent another that would do: a renewed or cross-signed
intermediate. So where OpenSSL has found an error, this module searches the certificates that
were sent, and the validator of `cryptography` judges each path that it finds. The validator
searches on its own, too, but within bounds that take up to 170 ms: so it is given one path at a
time, and what a search may cost is counted here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ExtendedKeyUsage, verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from .der import (
    SEQUENCE,
    content,
    elements,
    extension,
    issuer_and_subject,
    parse_certificate,
    without_warnings,
)
from .identity import alternative_names
from .profile import broken_rule

__all__ = ["MAX_DEPTH", "Judgement", "Load", "PathFinder", "load_of", "too_much"]

MAX_DEPTH: Final = 10
"""
Certificates between the peer's own and the trusted one. Chains of the web have 1 to 3; with
OpenSSL's default of 100, one of 100 intermediates held the reactor for 13 ms, with 10 for 2.5.
"""
_MAX_CERTIFICATES: Final = 50
_MAX_BYTES: Final = 64 * 1024
_MAX_OWN_BYTES: Final = 16 * 1024
"""Of what was sent, and of the peer's own certificate: beyond them no other path is sought."""
_MAX_COMPARISONS: Final = 20_000
"""
Names of the peer's own certificate times the name constraints of the others. OpenSSL allows
2^20, which take it 17 ms; a comparison takes up to 0.3 us.
"""
_BUDGET: Final = 5.0
"""
Milliseconds of signature checks in one search. The public suites of path building need at most
4.1; half of what one connection may hold the reactor for remains for the rest.
"""
_CHEAP: Final = 0.12
"""Milliseconds to check a signature with P-256, RSA of up to 4,096 bits, Ed25519 or Ed448."""
_DEAR: Final = 0.65
"""Milliseconds with other keys: P-384 and P-521 take 0.6 to 0.7."""
_RSA_BITS: Final = 4096
_MAX_SIGNATURES: Final = 8.0
"""Milliseconds of signature checks in OpenSSL's own path: ten with P-521 take 6.5."""
_JUDGED_KEPT: Final = 64
"""Chains whose judgement is remembered, by one context, until one of their dates passes."""
_NAME_CONSTRAINTS: Final = b"\x06\x03\x55\x1d\x1e"


class Load(NamedTuple):
    """
    What a certificate costs those who verify it, and until when it is good.

    Attributes:
        names: In its subjectAltName.
        constraints: Of names.
        signature: Milliseconds that checking a signature of its key takes.
        not_after: When it expires, in seconds since 1970.
    """

    names: int
    constraints: int
    signature: float
    not_after: float


@lru_cache(maxsize=256)
def load_of(encoded: bytes) -> Load:
    """Return the load of the certificate *encoded* in DER; what cannot be read has expired."""
    try:
        names = len(alternative_names(encoded))
        trees = extension(encoded, _NAME_CONSTRAINTS)
        constraints = 0
        if trees is not None:
            constraints = sum(
                sum(1 for _ in elements(tree.content))
                for tree in elements(content(trees, SEQUENCE))
            )
        certificate = parse_certificate(encoded)
        not_after = certificate.not_valid_after_utc.timestamp()
        return Load(names, constraints, _cost(certificate), not_after)
    except Exception:  # noqa: BLE001 - parsers raise what they like; OpenSSL judges it
        return Load(0, 0, _DEAR, 0.0)


def _cost(certificate: x509.Certificate) -> float:
    """Return the milliseconds that checking a signature of *certificate*'s key takes."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return _DEAR
    if isinstance(key, rsa.RSAPublicKey):
        size = max(1.0, key.key_size / _RSA_BITS)
        return _CHEAP * size * size * max(1.0, key.public_numbers().e.bit_length() / 17)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CHEAP if isinstance(key.curve, ec.SECP256R1) else _DEAR
    return _CHEAP if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey) else _DEAR


def too_much(loads: Sequence[Load]) -> str | None:
    """Return why a path costs too much to verify, its own certificate last; or `None`."""
    if not loads:
        return None
    constraints = sum(load.constraints for load in loads)
    if loads[-1].names * constraints > _MAX_COMPARISONS:
        return (
            f"its {loads[-1].names} names and the {constraints} name constraints above it are "
            f"more than {_MAX_COMPARISONS:,} comparisons"
        )
    if sum(load.signature for load in loads) > _MAX_SIGNATURES:
        return "the signatures of its chain take too long to check"
    return None


class _Node:
    """A certificate in a search."""

    __slots__ = ("certificate", "encoded", "issuer", "subject")

    def __init__(self, certificate: x509.Certificate, encoded: bytes) -> None:
        self.certificate = certificate
        self.encoded = encoded
        self.issuer, self.subject = issuer_and_subject(encoded)

    @property
    def cost(self) -> float:
        """Milliseconds; asked for the few that a search comes to, since it takes 0.1 itself."""
        return load_of(self.encoded).signature


class _ExhaustedError(Exception):
    """The search has cost what it may."""


class Judgement(NamedTuple):
    """
    What was made of a chain.

    Attributes:
        path: A valid path, the peer's own certificate first; `None` if there is none.
        why: Why there is none.
        until: The time of day from which on it may be another.
    """

    path: tuple[x509.Certificate, ...] | None
    why: str
    until: float


_NO_PATH: Final = "there is no valid path to a trusted certificate"


class PathFinder:
    """
    Finds paths to the trusted certificates of one context.

    Attributes:
        searches: Whether another path is sought where OpenSSL's has an error.
        strict: Whether it decides, by the strict profile, also where OpenSSL finds no error.
    """

    def __init__(
        self,
        trusted: Callable[[], Iterable[x509.Certificate]],
        *,
        of_clients: bool = False,
        searches: bool = True,
        strict: bool = False,
    ) -> None:
        """
        Find paths to *trusted*, which is called when the first path is sought.

        Args:
            trusted: Returns the trusted certificates.
            of_clients: The certificates are those of clients.
            searches: See the class.
            strict: See the class.
        """
        self.searches = searches
        self.strict = strict
        self._trusted = trusted
        self._policies = _policies(of_clients=of_clients)
        self._anchors: dict[bytes, list[_Node]] | None = None
        self._kept: OrderedDict[tuple[bytes, ...], Judgement] = OrderedDict()

    def find(self, sent: Sequence[bytes]) -> Judgement:
        """
        Judge the paths from the first of *sent*, in DER, to a trusted certificate.

        Its identity is not compared. Raises nothing: what cannot be read is on no path.
        """
        key = tuple(sent)
        now = time.time()
        judged = self._kept.pop(key, None)
        if judged is None or now >= judged.until:
            judged = self._judge(sent, now)
        self._kept[key] = judged
        if len(self._kept) > _JUDGED_KEPT:
            self._kept.popitem(last=False)
        return judged

    def trusts(self, encoded: bytes) -> bool:
        """Return whether the certificate *encoded* in DER is a trusted one."""
        anchors = self._anchors_by_subject().values()
        return any(encoded == node.encoded for nodes in anchors for node in nodes)

    def _judge(self, sent: Sequence[bytes], now: float) -> Judgement:
        bounded = (
            0 < len(sent) <= _MAX_CERTIFICATES
            and len(sent[0]) <= _MAX_OWN_BYTES
            and sum(map(len, sent)) <= _MAX_BYTES
        )
        if not bounded:
            return Judgement(None, "it is larger than what is searched for a path", float("inf"))
        # Whole seconds, as certificates have them: a fraction of the last one is still valid.
        when = datetime.fromtimestamp(int(now), UTC)
        nodes = list(_nodes(dict.fromkeys(sent)))
        if not nodes or nodes[0].encoded != sent[0]:
            return Judgement(None, "its own certificate cannot be parsed", float("inf"))
        dates = [
            moment.timestamp()
            for node in nodes
            for moment in (node.certificate.not_valid_before_utc, _end(node))
        ]
        until = min((moment for moment in dates if moment > now), default=float("inf"))
        search = _Search(self._anchors_by_subject(), nodes[1:], when, self._policies)
        why = _NO_PATH
        try:
            for path in search.paths(nodes[0]):
                found = search.verify(path)
                certificates = [node.certificate for node in path]
                broken = broken_rule(certificates) if self.strict else None
                why = broken or why
                if found is not None and broken is None:
                    ends = min(_last_second(certificate) for certificate in found)
                    return Judgement(found, "", min(until, ends))
        except _ExhaustedError:
            why = "the search for a path has cost what it may"
        return Judgement(None, why, until)

    def _anchors_by_subject(self) -> dict[bytes, list[_Node]]:
        if self._anchors is None:
            self._anchors = {}
            for node in _nodes(
                certificate.public_bytes(Encoding.DER) for certificate in self._trusted()
            ):
                self._anchors.setdefault(node.subject, []).append(node)
        return self._anchors


def _last_second(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp() + 1


def _end(node: _Node) -> datetime:
    return datetime.fromtimestamp(_last_second(node.certificate), UTC)


def _nodes(encoded: Iterable[bytes]) -> Iterator[_Node]:
    """Yield those that can be read."""
    for each in encoded:
        try:
            yield _Node(parse_certificate(each), each)
        except Exception:  # noqa: BLE001, S112 - parsers raise what they like
            continue


def _policies(*, of_clients: bool) -> dict[str, verification.ExtensionPolicy]:
    """
    Return what the validator demands of extensions.

    It has a verifier for servers, which compares a name as well, and of some kinds only; so the
    one for clients serves both, with the purpose checked here, and the name elsewhere.
    """
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if of_clients else ExtendedKeyUsageOID.SERVER_AUTH

    def check(
        _policy: verification.Policy,
        _certificate: x509.Certificate,
        usage: ExtendedKeyUsage | None,
    ) -> None:
        if usage is not None and purpose not in usage:
            raise ValueError("it is for other purposes")

    not_critical = verification.Criticality.NON_CRITICAL
    own = verification.ExtensionPolicy.webpki_defaults_ee()
    own = own.may_be_present(ExtendedKeyUsage, not_critical, check)
    if of_clients:
        # Certificates of clients need no names.
        either = verification.Criticality.AGNOSTIC
        own = own.may_be_present(x509.SubjectAlternativeName, either, None)
    others = verification.ExtensionPolicy.webpki_defaults_ca()
    others = others.may_be_present(ExtendedKeyUsage, not_critical, check)
    return {"ca_policy": others, "ee_policy": own}


class _Search:
    """One search: the edges that were looked at, and what it may still cost."""

    def __init__(
        self,
        anchors: dict[bytes, list[_Node]],
        others: Iterable[_Node],
        when: datetime,
        policies: dict[str, verification.ExtensionPolicy],
    ) -> None:
        self._anchors = anchors
        self._when = when
        self._policies = policies
        self._left = _BUDGET
        self._edges: dict[tuple[int, int], bool] = {}
        self._issuers: dict[bytes, list[_Node]] = {}
        for node in others:
            certificate = node.certificate
            if certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc:
                self._issuers.setdefault(node.subject, []).append(node)
        for nodes in self._issuers.values():
            nodes.sort(key=lambda node: node.certificate.not_valid_after_utc, reverse=True)

    def _spend(self, cost: float) -> None:
        self._left -= cost
        if self._left < 0:
            raise _ExhaustedError

    def _is_issued(self, child: _Node, issuer: _Node) -> bool:
        """Return whether *issuer* has signed *child*; each pair is checked once."""
        edge = id(child), id(issuer)
        if edge not in self._edges:
            self._spend(issuer.cost)
            try:
                child.certificate.verify_directly_issued_by(issuer.certificate)
                self._edges[edge] = True
            except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
                self._edges[edge] = False
        return self._edges[edge]

    def paths(self, *path: _Node) -> Iterator[tuple[_Node, ...]]:
        """Yield the paths on from *path*, each to a trusted certificate, short ones first."""
        last = path[-1]
        for anchor in self._anchors.get(last.issuer, ()):
            if self._is_issued(last, anchor):
                yield *path, anchor
        if len(path) > MAX_DEPTH:
            return
        for issuer in self._issuers.get(last.issuer, ()):
            if issuer not in path and self._is_issued(last, issuer):
                yield from self.paths(*path, issuer)

    def verify(self, path: tuple[_Node, ...]) -> tuple[x509.Certificate, ...] | None:
        """Return what the validator makes of *path*: the path, or `None`."""
        loads = [load_of(node.encoded) for node in reversed(path)]
        if too_much(loads) is not None:
            return None
        self._spend(sum(node.cost for node in path[1:]))
        own, *others, anchor = (node.certificate for node in path)
        try:
            verifier = (
                verification.PolicyBuilder()
                .store(verification.Store([anchor]))
                .time(self._when)
                .max_chain_depth(MAX_DEPTH)
                .extension_policies(**self._policies)
                .build_client_verifier()
            )
            with without_warnings():
                return tuple(verifier.verify(own, others).chain)
        except Exception:  # noqa: BLE001 - a refusal, or what it raises of odd names
            return None
