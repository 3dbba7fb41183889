"""
Awaitable sockets, plain and TLS: what `twisted_netsock.Socket` and the makers are.

Each operation returns a Deferred that can be cancelled and leaves nothing behind. This
folder imports `_net` and what stands below it, and nothing of `_endpoints`.
"""
