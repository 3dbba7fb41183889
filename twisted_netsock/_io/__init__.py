"""
Try once, wait, try again: operations on descriptors, and the poller that reports readiness.

An attempt at an operation is done, or has to wait until the descriptor is readable or
writable; it knows no reactor, no Deferred and no thread. Only the poller talks to the
reactor about descriptors. This folder imports only the values at the top of the package.
"""
