"""The command ``twist netsock``."""

from twisted.application.service import ServiceMaker

netsock = ServiceMaker(
    "netsock",
    "twisted_netsock.commands",
    "Sockets and TLS: relay connections, look at a TLS server, connect by hand, echo.",
    "netsock",
)
