"""The name by which users know a class that stands in a private module."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["public_in"]

C = TypeVar("C", bound=type)


def public_in(module: str) -> Callable[[C], C]:
    """
    Return a decorator that shows a class as one of *module*, from where users import it.

    So do messages, ``help()`` and pickles, which stay good when the class moves. It is the
    outermost decorator: attrs makes another class. `inspect.getsource` and `typing.get_type_hints`
    look for the class itself in *module*, in vain; for its methods they find everything.
    """

    def show(cls: C) -> C:
        cls.__module__ = module
        return cls

    return show
