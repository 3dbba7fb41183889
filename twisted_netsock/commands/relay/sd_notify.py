"""
Telling systemd, or who else supervises the relay, how it is: ``sd_notify(3)``.

One datagram of lines to the UNIX socket that ``NOTIFY_SOCKET`` names. Without that
variable nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

from twisted.logger import Logger

__all__ = ["Notifier"]

_VARIABLE: Final = "NOTIFY_SOCKET"

_log = Logger()


class Notifier:
    """Sends states to the supervisor, if there is one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Take the supervisor's socket from *environment*."""
        self._address = environment.get(_VARIABLE, "")
        self._complained = False

    def ready(self, status: str) -> None:
        """Tell that connections are taken, be it for the first time or after a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell that files are read again; `ready` tells when that is done."""
        # Which one of several reloads it is, systemd learns from the time.
        moment = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={moment}")

    def stopping(self, status: str) -> None:
        """Tell that the end has begun."""
        self._send("STOPPING=1", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the NUL byte of an abstract name.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "\n".join(line.replace("\n", " ") for line in lines)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), address)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.warn("the supervisor cannot be told anything: {error}", error=str(error))
