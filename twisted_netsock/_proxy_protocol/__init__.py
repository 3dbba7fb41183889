"""
PROXY headers (v1 and v2), as values and on the wire.

A header is read from a descriptor to the byte, before anything else is, and what follows
stays with the kernel. This folder imports `_io` and the values at the top of the package.
"""
