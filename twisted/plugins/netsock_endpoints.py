"""The endpoint strings ``netsock:`` and ``netsock-tls:``."""

from twisted_netsock._endpoints.plugin import EndpointParser

netsock = EndpointParser("netsock", tls=False)
netsock_tls = EndpointParser("netsock-tls", tls=True)
