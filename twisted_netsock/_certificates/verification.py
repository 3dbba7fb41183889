"""
Verification of a peer's certificate, inside OpenSSL's verify callback.

OpenSSL verifies the chain, `identity` the name, `paths` finds another chain where OpenSSL's has
an error, and the `certificate_verifier` of the options may overrule all. It happens while the
handshake can still be refused, and every exception is a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL, crypto
from twisted.logger import Logger

from .._hostnames import is_ip_address
from .._text import printable
from ..errors import CertificateVerificationError, unraised
from ..options import VerifyResult
from .der import parse_certificate, without_warnings
from .identity import is_for, server_identity
from .paths import Load, PathFinder, load_of, too_much

if TYPE_CHECKING:
    from cryptography import x509

    from ..options import Verifier

__all__ = ["Verification", "is_of_the_path", "verified_chain"]

# Of <openssl/x509_vfy.h>.
X509_V_OK: Final = 0
X509_V_ERR_UNABLE_TO_GET_CRL: Final = 3
X509_V_ERR_HOSTNAME_MISMATCH: Final = 62
X509_V_ERR_IP_ADDRESS_MISMATCH: Final = 64
X509_V_ERR_APPLICATION_VERIFICATION: Final = 50

_FINAL: Final = frozenset({1, 23, 28, 66, 94})
"""
OpenSSL's errors that no other path makes good: an unspecified one (its own limit of comparisons
with name constraints ends so), a revoked certificate, one that the platform distrusts, a key of
the peer's own that is too weak, and one with curve parameters of its own (CVE-2020-0601), which
the validator does not mind.
"""
_ABOUT_LISTS: Final = frozenset({3, 4, 6, 8, 11, 12, 15, 16, 33, 35, 36, 44, 54})
"""OpenSSL's errors about revocation lists: missing, not valid yet or any more, badly signed, …"""
_FREE_DEPTH: Final = 3
"""Signatures that are not weighed before the last: most paths have no more."""

_log = Logger()


def is_of_the_path(code: int) -> bool:
    """Return whether another path makes OpenSSL's error *code* good: it is not about the peer."""
    names = (X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH)
    return code not in _FINAL and code not in names


class _TooMuchError(Exception):
    """What the peer has sent takes too long to verify."""


class Verification:
    """
    What is to be verified of one connection's peer, and the result.

    Attributes:
        failure: The error to fail the handshake with, once there is one.
        asked: OpenSSL has called back, so the peer has shown a certificate.
        checked: The peer's own certificate has been accepted, identity included.
        path: The path that `PathFinder` found, the peer's own certificate first; `None`
            where it was not asked, and OpenSSL's path is good.
        may_be_skipped: A session is offered whose own handshake was verified; if it
            is resumed, no certificate is shown, and OpenSSL does not call back.
    """

    __slots__ = (
        "_identity",
        "_loads",
        "_next_update",
        "_paths",
        "_searches",
        "_shown",
        "_verifier",
        "asked",
        "checked",
        "failure",
        "may_be_skipped",
        "path",
    )

    def __init__(
        self,
        host: str | None,
        verifier: Verifier,
        paths: PathFinder | None = None,
        next_update: float = float("inf"),
    ) -> None:
        """
        Verify the identity *host* (a name, an address or a URI), or none if `None`.

        A server that asks for client certificates has no identity to compare.

        Args:
            host: As it is connected to.
            verifier: Of the options.
            paths: Asked where OpenSSL finds an error, and by the strict profile about every
                chain; `None` leaves it at OpenSSL's verdict. A callable *verifier* is owed
                OpenSSL's verdicts, so then no other path is sought.
            next_update: When revocation lists expire, in seconds since 1970.
        """
        self._identity = None if host is None else server_identity(host)
        self._verifier = verifier
        self._paths = paths
        self._searches = paths is not None and paths.searches and not callable(verifier)
        self._loads: dict[int, Load] = {}
        self._next_update = next_update
        self._shown: dict[int, bytes] = {}
        """OpenSSL's own path, where the strict profile judges that."""
        self.path: tuple[x509.Certificate, ...] | None = None
        self.failure: CertificateVerificationError | None = None
        self.checked = False
        self.may_be_skipped = False
        self.asked = False

    @property
    def needed(self) -> bool:
        """Whether the peer is verified at all."""
        return self._verifier is not False

    @property
    def skipped(self) -> bool:
        """Whether the handshake, which is done, resumed a session and verified nothing anew."""
        return self.may_be_skipped and not self.asked

    def first_expiry(self) -> float:
        """
        Return when the first certificate of the verified path expires, in seconds since 1970.

        The trusted one counts as well, since OpenSSL checks the dates of all, and so do
        revocation lists. A path that cannot be parsed counts as expired.
        """
        if self.path is None:
            expiries = [load.not_after for load in self._loads.values()]
        else:
            expiries = [each.not_valid_after_utc.timestamp() for each in self.path]
        return min([*expiries, self._next_update]) if expiries else 0.0

    def judge(
        self,
        certificate: bytes,
        code: int,
        depth: int,
        sent: Callable[[], Iterable[crypto.X509] | None] = tuple,
        text: str | None = None,
    ) -> bool:
        """
        Return whether to accept *certificate*, with OpenSSL's verdict *code* on it.

        Args:
            certificate: In DER, at *depth* of OpenSSL's path.
            code: 0 for a good one, after which OpenSSL may still find an error.
            depth: 0 is the peer's own.
            sent: Returns the certificates that the peer has sent, its own first.
            text: The verdict in OpenSSL's words, where they can be had.
        """
        self.asked = True
        if self.failure is not None:
            return False
        try:
            return self._accepts(certificate, code, text or _describe(code), depth, sent)
        except _TooMuchError as error:
            why = str(error)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a refusal
            # Mostly a parser's: the certificate is the peer's, and may be malformed.
            why = f"verification failed with {type(error).__name__}"
        self.failure = CertificateVerificationError(depth, why, None, code=code or 1)
        return False

    def _accepts(
        self,
        encoded: bytes,
        code: int,
        text: str,
        depth: int,
        sent: Callable[[], Iterable[crypto.X509] | None],
    ) -> bool:
        self._shown[depth] = encoded
        if code == X509_V_OK:
            self._weigh(encoded, depth)
        elif code == X509_V_ERR_UNABLE_TO_GET_CRL and self._is_end_of_trust(encoded):
            # OpenSSL calls back for it again.
            return True
        if self._has_another_path(code, sent):
            return True
        # Most certificates are good, and no verifier looks at them: then they are not parsed.
        plain = code == X509_V_OK and not callable(self._verifier)
        if plain and (depth > 0 or not any(self._objections(encoded, sent))):
            self.checked = self.checked or depth == 0
            return True
        subject = parse_certificate(encoded)
        if code in _ABOUT_LISTS:
            text += f": a valid revocation list of {_issuer(subject)} is needed"
        accepted = self._ask(depth, VerifyResult(code, text), subject)
        if accepted and depth == 0 and not self.checked:
            for objection in self._objections(encoded, sent):
                code, text = objection
                accepted = accepted and self._ask(depth, objection, subject)
            self.checked = accepted
        if not accepted:
            if code == X509_V_OK:
                code, text = 1, "certificate_verifier refused it"
            self.failure = CertificateVerificationError(depth, text, subject, code=code)
        return accepted

    def _is_end_of_trust(self, encoded: bytes) -> bool:
        """Return whether *encoded* is trusted itself, and another has issued it."""
        certificate = parse_certificate(encoded)
        is_root = certificate.issuer == certificate.subject
        return not is_root and self._paths is not None and self._paths.trusts(encoded)

    def _weigh(self, encoded: bytes, depth: int) -> None:
        """
        Note what the certificate *encoded* costs, which OpenSSL has found good so far.

        OpenSSL calls back from the trusted certificate down to the peer's own, each after its
        signature was checked and before the next one is, and compares names and constraints
        after the last: what would hold the reactor too long is refused before.
        """
        self._loads[depth] = load_of(encoded)
        if depth > 0 and len(self._loads) <= _FREE_DEPTH:
            return
        why = too_much([self._loads[place] for place in sorted(self._loads, reverse=True)])
        if why is not None:
            raise _TooMuchError(why)

    def _has_another_path(
        self, code: int, sent: Callable[[], Iterable[crypto.X509] | None]
    ) -> bool:
        """Return whether there is a path that is good whatever OpenSSL's is, and note it."""
        if self._paths is None or not self._searches or code in _FINAL:
            return False
        if self.path is None and code != X509_V_OK:
            chain = [_encode(each) for each in sent() or ()]
            path = self._paths.find(chain).path
            if path is not None and self._compare_identity(chain[0])[0] == X509_V_OK:
                self.path = path
                self.checked = True
        return self.path is not None

    def _objections(
        self, own: bytes, sent: Callable[[], Iterable[crypto.X509] | None]
    ) -> Iterator[VerifyResult]:
        """Yield what is wrong with the peer's *own* certificate beside what OpenSSL has found."""
        if self._paths is not None and self._paths.strict:
            shown = [self._shown[depth] for depth in sorted(self._shown)]
            chain = [_encode(each) for each in sent() or ()] if self._searches else shown
            judged = self._paths.find(chain)
            self.path = judged.path
            if judged.path is None:
                text = f"the strict profile refuses it: {judged.why}"
                yield VerifyResult(X509_V_ERR_APPLICATION_VERIFICATION, text)
        code, text = self._compare_identity(own)
        if code != X509_V_OK:
            yield VerifyResult(code, text)

    def _ask(self, depth: int, result: VerifyResult, certificate: x509.Certificate) -> bool:
        """Return the verifier's decision, or the verdict itself where it makes none."""
        verdict = result.code == X509_V_OK
        if not callable(self._verifier):
            return verdict
        try:
            answer: object = self._verifier(depth, result, certificate)
        except BaseException:
            _log.failure("verifying a certificate failed, so it is refused")
            raise
        if answer is None:
            return verdict
        # Anything but an explicit True refuses.
        return answer is True

    def _compare_identity(self, certificate: bytes) -> tuple[int, str]:
        """Return code 0 if *certificate*, in DER, is for the identity, else 62 or 64 and why."""
        identity = self._identity
        try:
            if is_for(certificate, identity):
                return X509_V_OK, "ok"
            why = f"the certificate is not for {identity!r}"
        except ValueError as error:
            why = f"the certificate cannot be matched with {identity!r}: {error}"
        by_address = identity is not None and is_ip_address(identity)
        return X509_V_ERR_IP_ADDRESS_MISMATCH if by_address else X509_V_ERR_HOSTNAME_MISMATCH, why

    def conclude(self) -> None:
        """
        Make sure, after a handshake, that the peer really was verified.

        Raises:
            CertificateVerificationError: It was to be, and was not.
        """
        if self.failure is None and self.needed and not (self.checked or self.skipped):
            self.failure = CertificateVerificationError(0, "it was never verified", None)
        if self.failure is not None:
            raise unraised(self.failure)


def _texts() -> dict[int, str]:
    """Return OpenSSL's verdicts in words, made from the names of their constants."""
    codes = vars(SSL.X509VerificationCodes)
    return {
        code: name.removeprefix("ERR_").lower().replace("_", " ").replace("cert ", "certificate ")
        for name, code in codes.items()
        if isinstance(code, int)
    }


_TEXTS: Final = _texts()


def _describe(code: int) -> str:
    return _TEXTS.get(code, f"OpenSSL's verification error {code}")


def _issuer(certificate: x509.Certificate) -> str:
    try:
        return printable(certificate.issuer.rfc4514_string())
    except Exception:  # noqa: BLE001 - parsers raise what they like
        return "its issuer"


def _encode(certificate: crypto.X509) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def verified_chain(
    verification: Verification, connection: SSL.Connection
) -> tuple[x509.Certificate, ...]:
    """Return the path that was found good, the peer's own certificate first."""
    if verification.path is not None:
        return verification.path
    with without_warnings():
        return tuple(connection.get_verified_chain(as_cryptography=True) or ())
