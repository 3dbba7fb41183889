"""The endpoint strings ``netsock:`` and ``netsock-tls:``."""

from twisted_netsock.parsers import EndpointParser

netsock = EndpointParser("netsock", tls=False)
netsock_tls = EndpointParser("netsock-tls", tls=True)
