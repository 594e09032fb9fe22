"""No looks for circular garbage while thousands of notes are taken."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Run the body without looks for circular garbage; also a decorator.

    Notes on a large model are many small objects that live to the end. Their number makes python look for circles, every few
    of these looks goes through all that torch has loaded, which takes a tenth of a second, and none finds anything.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
