from __future__ import annotations

import inspect
import pickle
from multiprocessing.pool import Pool

import pytest

from torch_dmft.core import errors
from torch_dmft.core.errors import DMFTError, InvalidInputError, MissingFileError, Place, UnsupportedModelError


def test_message_says_what_got_and_remedy() -> None:
    error = InvalidInputError("Widths are positive.", got="-3", remedy="a positive width")
    assert str(error) == "Widths are positive. Got: -3. Remedy: a positive width."
    assert isinstance(error, ValueError)
    assert isinstance(error, DMFTError)


def test_unsupported_model_lists_every_place() -> None:
    error = UnsupportedModelError("Cannot:", [Place("a.0", "is tied", "untie"), Place("b", "is lazy", "run it once")])
    assert str(error).splitlines() == [
        "Cannot:",
        "  a.0: is tied. Remedy: untie.",
        "  b: is lazy. Remedy: run it once.",
    ]


def test_places_of_one_kind_share_a_line() -> None:
    blocks = [Place(f"h.{n}.attn", f"h.{n}.attn.q divides by 8", "divide by 64") for n in range(12)]
    others = [Place(path, "it has 2.5 weights", "none") for path in ("0", "head")]
    error = UnsupportedModelError("This cannot be done:", [*blocks, *others, Place("h.3.mlp", "it is odd", "none")])
    assert str(error).splitlines() == [
        "This cannot be done:",
        "  h.*.attn (12 times): h.*.attn.q divides by 8. Remedy: divide by 64.",
        "  0, head: it has 2.5 weights. Remedy: none.",
        "  h.3.mlp: it is odd. Remedy: none.",
    ]
    assert len(error.places) == 15


PLACES = [Place("a.0", "is tied", "untie"), Place("b", "is lazy", "run it once")]
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DMFTError)]


class OwnError(MissingFileError):
    """A user's, whose arguments are others."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} is {number}", remedy="none")


def raised(kind: type[DMFTError]) -> DMFTError:
    if kind is UnsupportedModelError:
        return UnsupportedModelError("Cannot:", PLACES)
    return OwnError("a", 3) if kind is OwnError else kind("What.", got="this", remedy="that")


def fail(kind: type[DMFTError]) -> None:
    raise raised(kind)


@pytest.mark.parametrize("kind", [*KINDS, OwnError])
def test_errors_arrive_in_other_processes_as_they_were_raised(kind: type[DMFTError]) -> None:
    error = raised(kind)
    error.add_note("in worker 3")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_a_pool_hands_on_an_error() -> None:
    with Pool(1) as pool, pytest.raises(UnsupportedModelError, match="is tied") as caught:
        pool.apply_async(fail, (UnsupportedModelError,)).get(timeout=60)
    assert caught.value.places == tuple(PLACES)
