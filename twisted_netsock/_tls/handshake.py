"""How a TLS connection begins and ends on the reactor: handshake and TLS shutdown."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from .._io.drive import drive
from .._io.interfaces import Reactor
from .._io.poller import Slots
from ..errors import SocketConnectionTimeoutError
from .descriptor import TLSDescriptor

__all__ = ["handshake", "tls_shutdown"]


def handshake(
    reactor: Reactor, watch: Slots, descriptor: TLSDescriptor, timeout: float | None
) -> Deferred[None]:
    """
    Perform the handshake on *descriptor*.

    Args:
        reactor: For the timeout.
        watch: The descriptor's, unused by others meanwhile.
        descriptor: Stays open whatever happens; on failure it is the caller's to close.
        timeout: Seconds, or `None` for no limit.

    Returns:
        `None`, when the handshake is done and the peer verified.

    Errors:
        CertificateVerificationError: We refused the peer's certificate.
        TLSHandshakeError: Anything else that TLS did not like.
        SocketConnectionLostError: The peer went away.
        SocketConnectionTimeoutError: *timeout* passed; its stage is ``"handshake"``.

    Cancelling:
        Fails with `CancelledError`; the descriptor is good for nothing but closing.
    """
    # drive() fires with the first value that is no Want: None, when the handshake is done.
    return drive(
        reactor,
        watch,
        descriptor.try_handshake,
        timeout=timeout,
        timed_out=lambda: SocketConnectionTimeoutError("handshake"),
    )


def tls_shutdown(reactor: Reactor, watch: Slots, descriptor: TLSDescriptor) -> Deferred[None]:
    """
    Exchange close_notify with the peer, and close *descriptor*.

    Takes watch and descriptor over. Gives up after the `close_timeout` of the
    descriptor's options.

    Returns:
        `None`, when the descriptor is closed, and gone.

    Cancelling:
        Closes at once.
    """

    def close(_: object) -> Deferred[None] | None:
        watch.close()
        descriptor.close()
        return descriptor.gone()

    return drive(
        reactor,
        watch,
        descriptor.try_tls_shutdown,
        timeout=descriptor.options.close_timeout.total_seconds(),
        timed_out=lambda: SocketConnectionTimeoutError("TLS shutdown"),
    ).addBoth(close)
