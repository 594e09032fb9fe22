from __future__ import annotations

from torch_dmft.core.errors import DMFTError, InvalidInputError, Place, UnsupportedModelError


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
