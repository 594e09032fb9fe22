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
