"""The command ``twist netsock``."""

from twisted.application.service import ServiceMaker

netsock = ServiceMaker(
    "netsock",
    "twisted_netsock.commands",
    "Sockets and TLS: relay connections between any two endpoints, or echo them.",
    "netsock",
)
