"""CPython's own tests over the blocking facade; ``nox -s cpython`` runs them."""
