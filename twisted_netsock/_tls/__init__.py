"""
TLS on a descriptor, and everything about certificates.

A `TLSDescriptor` has the methods of a plain one, plus the handshake and close_notify.
Verification happens within OpenSSL's callback and fails closed. Only this folder reaches into
pyOpenSSL. It imports `_io` and the values at the top of the package.
"""
