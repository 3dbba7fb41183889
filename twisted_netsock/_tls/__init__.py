"""
TLS on a descriptor: contexts, connections, and sessions.

A `TLSDescriptor` has the methods of a plain one, plus the handshake and close_notify. Only this
folder reaches into pyOpenSSL. It imports `_certificates`, `_io` and the values at the top of
the package.
"""
