"""Every array and every value of a saved trajectory is needed and checked, and what is wrong is said."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.core.saved import refused, rewrite
from torch_dmft.core import trajectory
from torch_dmft.core.errors import InvalidInputError
from torch_dmft.core.parts import refuse_misfit
from torch_dmft.core.trajectory import Trajectory


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays["trajectory.steps"].__setitem__(1, -5), "integers from 0 on"),
        (lambda arrays: arrays["trajectory.training.batches.1"].__setitem__(0, -1), "rows"),
        (
            lambda arrays: arrays.update({"trajectory.training.numbers.0": np.zeros(3)}),
            "lr is one number for each of 5",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused(change: Callable[[dict[str, Any]], None], reason: str, path: Path) -> None:
    rewrite(path, lambda header, arrays: change(arrays))
    refused(path, f"damaged or incomplete.*{reason}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda fields: fields["training"]["fields"].update(gamma0=-5.0), "gamma0 must be a finite number > 0"),
        (lambda fields: fields["training"]["fields"].update(gamma0=math.inf), "gamma0 must be a finite number > 0"),
        (lambda fields: fields["training"]["fields"].update(steps=6), "each of 6 steps"),
        (lambda fields: fields["training"]["fields"].update(steps=-1), "steps must be an integer >= 0"),
        (lambda fields: fields.update(width=-3), "width is at least 1"),
        (lambda fields: fields["layers"][0]["fields"].update(width=0), "width of 'fc.0' is at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: Callable[[dict[str, Any]], None], reason: str, path: Path) -> None:
    rewrite(path, lambda header, arrays: change(header["value"]["fields"]))
    refused(path, f"damaged or incomplete.*{reason}")


@pytest.mark.parametrize("kind", ["complex64", "bool", "int64", "float32"])
@pytest.mark.parametrize("name", ["steps", "outputs", "losses", "train", "targets", "ntk.array"])
def test_numbers_of_a_kind_that_cannot_be_are_refused(name: str, kind: str, small: Trajectory, path: Path) -> None:
    """And those that can be are read: whole outputs, for instance."""
    known = {"steps": {"int64"}, "train": {"bool"}}.get(name, {"int64", "float32"})
    small.save(path)
    name = f"trajectory.{name}"

    def change(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].astype(kind)
        text = json.dumps(header).replace(
            f'"tensor": "{name}", "dtype": "{_dtype_in(header, name)}"', f'"tensor": "{name}", "dtype": "{kind}"'
        )
        header.update(json.loads(text))

    rewrite(path, change)
    if kind in known:
        str(Trajectory.load(path))
    else:
        refused(path, r"damaged or incomplete.*(integers from 0|real|bools|complex)")


def _dtype_in(header: dict[str, Any], name: str) -> str:
    found = re.search(rf'"tensor": "{re.escape(name)}", "dtype": "(\w+)"', json.dumps(header))
    assert found
    return found[1]


def test_bools_that_are_neither_are_refused(small: Trajectory, path: Path) -> None:
    small.save(path)

    def change(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays["trajectory.train"].view(np.uint8)[0] = 2

    rewrite(path, change)
    refused(path, "neither true nor false")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda fields: fields.update(origin="\ud800"), r"origin is text that can be written.*ud800"),
        (lambda fields: fields["layers"][0]["fields"].update(name="a\udfff"), r"name of weight 0 is text"),
        (lambda fields: fields["training"]["fields"].update(loss="\ud800"), r"loss is text"),
        (lambda fields: fields["training"]["fields"].update(steps=10**20), r"steps=an integer of 67 bits"),
    ],
)
def test_texts_and_counts_that_nobody_can_use_are_refused(
    change: Callable[[dict[str, Any]], None], reason: str, path: Path, small: Trajectory
) -> None:
    small.save(path)
    rewrite(
        path,
        lambda header, arrays: (arrays.pop("trajectory.training.numbers.0", None), change(header["value"]["fields"])),
    )
    refused(path, f"damaged or incomplete.*{reason}")


@pytest.mark.parametrize("number", ["much", None, torch.zeros(5, dtype=torch.complex64)])
@pytest.mark.parametrize("place", ["numbers", "exceptions"])
def test_settings_that_are_no_numbers_are_refused(place: str, number: Any, small: Trajectory) -> None:
    numbers = {"lr": number}  # put there behind the checks of annotations
    object.__setattr__(small.training, place, numbers if place == "numbers" else {"fc.0.weight": numbers})
    with pytest.raises(InvalidInputError, match=r"lr is a number, or one for each step.*Got"):
        refuse_misfit(small)


def test_every_array_is_needed(path: Path) -> None:
    whole = path.read_bytes()
    with np.load(path) as file:
        names = [name for name in file.files if name != "header"]
    assert len(names) > 20
    for name in names:
        path.write_bytes(whole)
        rewrite(path, lambda header, arrays, name=name: arrays.pop(name))
        refused(path, f"damaged or incomplete.*{name}' is missing")
    path.write_bytes(whole)
    rewrite(path, lambda header, arrays: arrays.update(more=np.zeros(2)))
    refused(path, "does not know the array 'more'")


def test_every_field_of_the_header_is_needed(path: Path) -> None:
    whole = path.read_bytes()
    for name in trajectory.Trajectory.__dataclass_fields__:
        path.write_bytes(whole)
        rewrite(path, lambda header, arrays, name=name: header["value"]["fields"].pop(name))
        refused(path, f"damaged or incomplete.*`trajectory` lacks '{name}'")
    for key, reason in (("format", "not a saved trajectory"), ("schema", "no schema"), ("value", "lacks 'value'")):
        path.write_bytes(whole)
        rewrite(path, lambda header, arrays, key=key: header.pop(key))
        refused(path, reason)


def test_every_value_of_the_header_has_its_type(small: Trajectory, path: Path) -> None:
    """Each value and each branch of the JSON is replaced by values of all other types."""
    small.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    text = str(arrays.pop("header"))
    spots = list(places(json.loads(text)))
    assert len(spots) > 50
    for spot in spots:
        for other in (None, 7, "x", [1], {}, {"tensor": "x", "dtype": "float32"}):
            header = json.loads(text)
            put(header, spot, other)
            np.savez(path, header=np.array(json.dumps(header)), **arrays)
            with contextlib.suppress(InvalidInputError):
                again = Trajectory.load(path)  # only another value of the same type is taken for one
                again.save(path)
                assert Trajectory.load(path) == again


def places(tree: Any, start: tuple[Any, ...] = ()) -> Any:
    if start:
        yield start
    for key, branch in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(branch, (*start, key))


def put(tree: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        tree = tree[key]
    tree[place[-1]] = value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda fields: fields["training"]["fields"].update(gamma0="x"),
            "`trajectory.training.gamma0` must not be of type str",
        ),
        (
            lambda fields: fields["training"]["fields"].update(steps=True),
            "`trajectory.training.steps` must not be of type bool",
        ),
        (
            lambda fields: fields["training"]["fields"].update(numbers=1),
            "`trajectory.training.numbers` must not be of type int",
        ),
        (lambda fields: fields.update(origin=3), "`trajectory.origin` must not be of type int"),
        (lambda fields: fields.update(outputs=None), "`trajectory.outputs` must not be of type NoneType"),
        (
            lambda fields: fields.update(outputs={"type": "Kernel", "fields": {"array": 1, "factors": None}}),
            "`trajectory.outputs.array` must not be of type int",
        ),
        (
            lambda fields: fields.update(ntk=fields["layers"]),
            "`trajectory.ntk.0.forward.array` is said to be in the array 'trajectory.layers.0.forward.array'",
        ),
        (lambda fields: fields.update(layers=[1]), "`trajectory.layers` must not be of type tuple"),
        (lambda fields: fields["ntk"].update(type="Popen"), "`trajectory.ntk` is of an unknown type 'Popen'"),
        (lambda fields: fields.update(extra=1), "`trajectory` has an unknown field 'extra'"),
        (lambda fields: fields["outputs"].update(dtype="float64"), "`trajectory.outputs` must be of dtype float64"),
        (lambda fields: fields["outputs"].update(dtype="int32"), "`trajectory.outputs` must be of dtype int32"),
        (lambda fields: fields["outputs"].update(dtype="load"), "`trajectory.outputs` must be of dtype load"),
        (
            lambda fields: fields["losses"].update(tensor="trajectory.train"),
            "`trajectory.losses` is said to be in the array 'trajectory.train'",
        ),
        (lambda fields: fields.update(targets=None), "does not know the array 'trajectory.targets'"),
    ],
)
def test_what_is_wrong_is_said(change: Callable[[dict[str, Any]], None], reason: str, path: Path) -> None:
    rewrite(path, lambda header, arrays: change(header["value"]["fields"]))
    refused(path, reason)


def test_arrays_that_do_not_fit_together_are_refused(path: Path) -> None:
    rewrite(path, lambda header, arrays: arrays.update({"trajectory.losses": np.zeros(3, np.float32)}))
    refused(path, "damaged or incomplete.*must have equal lengths")
    rewrite(path, lambda header, arrays: arrays.update({"trajectory.ntk.array": np.zeros(3, np.float32)}))
    refused(path, "damaged or incomplete.*3 to 6 axes")
