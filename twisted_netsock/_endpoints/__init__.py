"""
Twisted's face: endpoints, their strings, listening ports and transports for protocols.

What Twisted's interfaces promise holds, over plain connections, TLS and inner endpoints.
This folder imports `_net` and what stands below it, and nothing of `_sockets`. Every
``twist`` loads `plugin`, which therefore imports nothing heavy.
"""
