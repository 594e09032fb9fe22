"""Values on disk: one ``.npz`` file with the arrays and a JSON header that says what each of them is.

It holds tensors, numbers, bools, strings and None, and dataclasses, tuples, lists and mappings of them, nested at will. Which
dataclasses there are is told by a ``FileFormat``: a file names classes, and only the classes of the format are built. Nothing
is ever unpickled.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from torch_dmft.core.errors import InvalidInputError, MissingFileError
from torch_dmft.core.replacing import path_of, replacing

_HEADER = "header"
_MEMBER = ".npy"
_CHUNK = 2**24
_BITS = {1: torch.uint8, 2: torch.int16}


@dataclass(frozen=True)
class FileFormat:
    """One kind of file.

    Attributes:
        name: of the format, written into each file.
        schema: of the format, written into each file; raised whenever a file written now could not be read by the code before.
        root: the dataclass that a file holds one of; its ``save`` writes the file.
        parts: the other dataclasses that may occur in it.
    """

    name: str
    schema: int
    root: type
    parts: tuple[type, ...] = ()

    @property
    def noun(self) -> str:
        """What a file of this format is called in messages."""
        return f"saved {self.root.__name__.lower()}"


def write(value: Any, path: str | Path, file_format: FileFormat) -> None:
    """Write a value to one file, completely or not at all.

    Args:
        value: of the class ``file_format.root``; every tensor comes back on the CPU with its dtype and bits.
        path: the file, conventionally ``*.npz``. An existing file is replaced in one step (``core.replacing``).
        file_format: the kind of file.

    Raises:
        InvalidInputError: if a part of it cannot be saved; the message names it.
        NotWrittenError: if the file system does not take the file.
    """
    if type(value) is not file_format.root:
        raise InvalidInputError(f"`value` must be a {file_format.root.__name__}.", got=type(value).__name__)
    arrays: dict[str, np.ndarray] = {}
    encoder = _Encoder({kind.__name__: kind for kind in (file_format.root, *file_format.parts)}, arrays)
    tree = encoder.encode(value, file_format.root.__name__.lower())
    header = {"format": file_format.name, "schema": file_format.schema, "value": tree}
    with replacing(path) as file:
        np.savez(file, **{_HEADER: np.array(json.dumps(header))}, **arrays)  # type: ignore[arg-type]


def read(path: str | Path, file_format: FileFormat) -> Any:
    """Read a value written by ``write``.

    Args:
        path: the file.
        file_format: the kind of file that is expected.

    Raises:
        MissingFileError: if the file does not exist.
        InvalidInputError: if the file is of another kind or schema, damaged or incomplete.
    """
    writer = f"a file written by {file_format.root.__name__}.save"
    where = path_of(path, remedy=writer)
    try:
        if where.exists() and not where.is_file():  # reading from a pipe would wait for ever
            raise OSError("no regular file")
        with where.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                raise _NotThisFormatError("it does not begin as an .npz file does")
            members = _Members(file)
            header = _header(members.text(), file_format)
            if header["schema"] != file_format.schema:
                raise InvalidInputError(
                    f"This {file_format.noun} has schema {header['schema']!r}; "
                    f"this version of torch_dmft reads schema {file_format.schema}.",
                    got=f"{path}",
                    remedy="read it with the version of torch_dmft that wrote it, or run again and save with this one",
                )
            _require_keys(header, {"format", "schema", "value"}, "the header")
            decoder = _Decoder({kind.__name__: kind for kind in (file_format.root, *file_format.parts)}, members)
            value = decoder.decode(header["value"], file_format.root, file_format.root.__name__.lower())
            if unused := members.names - decoder.used:
                raise _DamagedError(f"the header does not know the array {min(unused)!r}")
    except InvalidInputError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError("The file does not exist.", got=f"{path}", remedy=writer) from error
    except OSError as error:
        raise InvalidInputError(
            "This file cannot be read.", got=f"{path}: {error.strerror or error}", remedy=writer
        ) from error
    except _NotThisFormatError as error:
        raise InvalidInputError(
            f"This file is not a {file_format.noun}.", got=f"{path}: {error}", remedy=writer
        ) from error
    except Exception as error:  # there are more ways to be damaged than zipfile, json and numpy have documented errors
        reason = str(error) if isinstance(error, _DamagedError) else f"{type(error).__name__}: {error}"
        raise InvalidInputError(
            f"This {file_format.noun} is damaged or incomplete.",
            got=f"{path}: {reason}",
            remedy="another copy of the file, or run again and save",
        ) from error
    return value


class _NotThisFormatError(Exception):
    """The file is something else."""


class _DamagedError(Exception):
    """The file is of the right kind, and is inconsistent."""


class _Encoder:
    """Turns values into JSON; tensors go to ``arrays`` under their path and leave their dtype behind."""

    def __init__(self, kinds: Mapping[str, type], arrays: dict[str, np.ndarray]) -> None:
        self.kinds, self.arrays = kinds, arrays

    def encode(self, value: Any, path: str) -> Any:
        """JSON for a value; ``path`` says where it is, as in ``trajectory.layers.0.name``."""
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, Real):
            return float(value)
        if isinstance(value, tuple):
            return [self.encode(item, f"{path}.{index}") for index, item in enumerate(value)]
        if isinstance(value, list):
            return {"list": [self.encode(item, f"{path}.{index}") for index, item in enumerate(value)]}
        if isinstance(value, Mapping):
            items = enumerate(value.items())
            return {"mapping": [[self._key(key, path), self.encode(item, f"{path}.{i}")] for i, (key, item) in items]}
        if is_dataclass(value) and self.kinds.get(type(value).__name__) is type(value):
            return {"type": type(value).__name__, "fields": self._parts(value, path)}
        raise InvalidInputError(
            f"`{path}` cannot be saved.",
            got=type(value).__name__,
            remedy="tensors, numbers, bools, strings, None, and tuples, lists and mappings of them",
        )

    def _parts(self, value: Any, path: str) -> dict[str, Any]:
        hints = _annotations(type(value))  # type: ignore[arg-type]  # classes are hashable
        parts = {}
        for field in fields(value):
            part, name = getattr(value, field.name), f"{path}.{field.name}"
            if not _fits(part, hints[field.name]):  # it could not be read back
                raise InvalidInputError(
                    f"`{name}` cannot be saved.", got=type(part).__name__, remedy=f"a value of type {field.type}"
                )
            parts[field.name] = self.encode(part, name)
        return parts

    def _key(self, key: Any, path: str) -> str | int | float | bool | None:
        if key is None or isinstance(key, str | bool):
            return key
        if isinstance(key, Integral):
            return int(key)
        if isinstance(key, Real):
            return float(key)
        raise InvalidInputError(
            f"A key of `{path}` cannot be saved.", got=type(key).__name__, remedy="strings or numbers as keys"
        )

    def _tensor(self, value: Tensor, path: str) -> dict[str, str]:
        tensor = value.detach().cpu().to_dense().resolve_conj().resolve_neg().contiguous()
        self.arrays[path] = tensor.view(_stored(tensor.dtype)).numpy()
        return {"tensor": path, "dtype": str(tensor.dtype).removeprefix("torch.")}


def _stored(dtype: torch.dtype) -> torch.dtype:
    """The numpy dtype that stores the bits of this one, as numpy lacks bfloat16 and float8."""
    known = {torch.float16, torch.float32, torch.float64}
    return _BITS[dtype.itemsize] if dtype.is_floating_point and dtype not in known else dtype


class _Decoder:
    """Turns JSON back into values, and checks each of them against the annotation of the field it goes to."""

    def __init__(self, kinds: Mapping[str, type], members: _Members) -> None:
        self.kinds, self.members = kinds, members
        self.used: set[str] = set()

    def decode(self, tree: Any, hint: Any, path: str) -> Any:
        """The value that ``tree`` stands for."""
        value = self._value(tree, path)
        if not _fits(value, hint):
            raise _DamagedError(f"`{path}` must not be of type {type(value).__name__}")
        return value

    def _value(self, tree: Any, path: str) -> Any:
        if isinstance(tree, list):
            return tuple(self._value(item, f"{path}.{index}") for index, item in enumerate(tree))
        if not isinstance(tree, dict):
            return tree
        match sorted(tree):
            case ["list"]:
                return [self._value(item, f"{path}.{index}") for index, item in enumerate(tree["list"])]
            case ["mapping"]:
                return {key: self._value(item, f"{path}.{index}") for index, (key, item) in enumerate(tree["mapping"])}
            case ["dtype", "tensor"]:
                return self._tensor(tree["tensor"], tree["dtype"], path)
            case ["fields", "type"]:
                return self._instance(tree["type"], tree["fields"], path)
        raise _DamagedError(f"`{path}` is {sorted(tree)} in the header")

    def _instance(self, name: Any, parts: Any, path: str) -> Any:
        if name not in self.kinds:
            raise _DamagedError(f"`{path}` is of an unknown type {name!r}")
        kind = self.kinds[name]
        _require_keys(parts, {f.name for f in fields(kind)}, f"`{path}`")
        hints = _annotations(kind)
        values = {field: self.decode(part, hints[field], f"{path}.{field}") for field, part in parts.items()}
        try:
            return kind(**values)
        except InvalidInputError as error:
            raise _DamagedError(f"`{path}`: {error}") from error

    def _tensor(self, name: Any, dtype: Any, path: str) -> Tensor:
        if name != path:  # so none is read twice
            raise _DamagedError(f"`{path}` is said to be in the array {name!r}")
        self.used.add(path)
        wanted = getattr(torch, str(dtype), None)
        tensor = torch.from_numpy(self.members.array(path))
        if not isinstance(wanted, torch.dtype) or tensor.dtype != _stored(wanted):
            raise _DamagedError(f"`{path}` must be of dtype {dtype}, and its array is of {tensor.dtype}")
        return tensor.view(wanted)


class _Members:
    """The arrays of an ``.npz`` file. None is read before it is asked for, and the sizes of all are checked before any."""

    def __init__(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        self._archive = zipfile.ZipFile(file)
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for member in self._archive.infolist():
            name = member.filename.removesuffix(_MEMBER)
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise _DamagedError(f"the array {name!r} is not stored as it was written")
            if name in self._infos:
                raise _DamagedError(f"the array {name!r} is there twice")
            self._infos[name] = member
        if sum(member.file_size for member in self._infos.values()) > size:
            raise _DamagedError("its arrays are said to be larger than the file is")

    @property
    def names(self) -> set[str]:
        """Of all arrays but the header."""
        return self._infos.keys() - {_HEADER}

    def text(self) -> str:
        """The header."""
        if _HEADER not in self._infos:
            raise _NotThisFormatError("it has no header")
        array = self.array(_HEADER)
        if array.dtype.kind != "U" or array.shape:
            raise _NotThisFormatError("its header is not text")
        return str(array[()])

    def array(self, name: str) -> np.ndarray:
        """One array; its checksum is compared on the way."""
        if name not in self._infos:
            raise _DamagedError(f"the array {name!r} is missing")
        member = self._infos[name]
        content = bytearray(member.file_size)
        rest = memoryview(content)
        with self._archive.open(member) as stream:
            while rest:
                count = stream.readinto(rest[:_CHUNK])  # type: ignore[attr-defined]
                if not count:
                    raise _DamagedError(f"the array {name!r} ends early")
                rest = rest[count:]
        return _array(content)


def _array(content: bytearray) -> np.ndarray:
    """The array of the content of an ``.npy`` file, without copying it."""
    start = io.BytesIO(memoryview(content)[: 2**16])
    shape, fortran_order, dtype = _array_header(start)
    if fortran_order or len(content) != start.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise _DamagedError("an array is not stored as it was written")
    flat = np.frombuffer(content, dtype, offset=start.tell()) if len(content) > start.tell() else np.empty(0, dtype)
    if dtype.kind == "b" and bool((flat.view(np.uint8) > 1).any()):
        raise _DamagedError("a bool is neither true nor false")
    return flat.reshape(shape)


def _array_header(start: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, order and dtype that an ``.npy`` file begins with.

    numpy parses them as Python, and threads that parse at the same time may disturb each other in Python 3.11.0 to
    3.11.7, 3.12.0 and 3.12.1 (github.com/python/cpython/issues/106905): it is tried again then.
    """
    while True:
        start.seek(0)
        version = np.lib.format.read_magic(start)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            return reader(start)
        except SystemError as error:
            if "recursion depth mismatch" not in str(error):
                raise


def _header(text: str, file_format: FileFormat) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise _NotThisFormatError("its header is not JSON") from error
    if not isinstance(header, dict) or header.get("format") != file_format.name:
        raise _NotThisFormatError("its header names another format, or none")
    if "schema" not in header:
        raise _DamagedError("the header has no schema")
    return header


def _require_keys(mapping: Any, names: set[str], where: str) -> None:
    if not isinstance(mapping, dict):
        raise _DamagedError(f"{where} is not a JSON object")
    if missing := names - mapping.keys():
        raise _DamagedError(f"{where} lacks {min(missing)!r}")
    if unknown := mapping.keys() - names:
        raise _DamagedError(f"{where} has an unknown field {min(unknown)!r}")


@cache
def _annotations(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type an annotation names; True for annotations that ``isinstance`` cannot check.

    A mapping may hold more than its annotation says: facts that users add to a run are kept as they are.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in args)
    if hint is None or hint is NoneType:
        return value is None
    if origin is tuple:
        inner = [args[0]] * len(value) if isinstance(value, tuple) and args[1:] == (...,) else args
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    try:
        return isinstance(value, origin or hint)
    except TypeError:
        return True
