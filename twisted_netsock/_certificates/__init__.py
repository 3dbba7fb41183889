"""
Certificates: read from files and read again, made for trials, and judged.

A peer's chain is judged within OpenSSL's callback, where an exception is a refusal, too: by
OpenSSL, by another path where its own has an error, and by the names in the certificate. This
folder imports `_io` and the values at the top of the package.
"""
