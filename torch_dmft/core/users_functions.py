"""Functions that a user gives: where one of them fails, the error says which, and with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_dmft.core.errors import DMFTError, InvalidInputError


def called(name: str, function: Callable[..., Any], *args: Any, remedy: str) -> Any:
    """What a user's function returns.

    Args:
        name: the argument by which it was given.
        function: the function.
        *args: what it is called with.
        remedy: the form that it must have.

    Raises:
        InvalidInputError: if it fails, or ends the program; what it raised is the cause.
    """
    try:
        return function(*args)
    except DMFTError:
        raise
    except (Exception, SystemExit) as error:  # whose status would be taken for an answer
        raise InvalidInputError(
            f"`{name}` fails where it is called.", got=f"{type(error).__name__}: {error}".rstrip(".\n"), remedy=remedy
        ) from error
