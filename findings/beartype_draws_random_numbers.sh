#!/usr/bin/env bash
# beartype 0.23.1: a call whose argument is checked as a list (or another container) draws from the global generator of
# python's `random`, because one random item is checked. A seeded program that shuffles or augments with `random` therefore
# goes another way as soon as a function that it calls is checked, or gets one more list to check: with the decorator and
# without it the same seed gives other numbers. numpy's and torch's generators are left alone.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet beartype==0.23.1
"$here/venv/bin/python" - <<'PY'
import random

import beartype


def length(values: list[int]) -> int:
    return len(values)


def after_a_call(function):
    random.seed(0)
    function([1, 2, 3])
    return random.random()


plain, checked = after_a_call(length), after_a_call(beartype.beartype(length))
print(f"beartype {beartype.__version__}: random.random() after a plain call {plain:.6f}, after a checked call {checked:.6f}")
assert plain != checked, "checked calls leave the generator alone now"
PY
