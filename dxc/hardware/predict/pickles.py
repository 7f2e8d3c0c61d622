"""Reads scikit-learn forests from untrusted pickles without executing them.

A pickle is a program: it may name any function and call it. Here each allowed name becomes an inert object, new for
each file, that only keeps its arguments. Any other name is refused. Arrays are decoded from their bytes. (nn-Meter's
packages are pickles of scikit-learn 0.23, which current versions refuse to load.)
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dxc.errors import HardwareError
from dxc.hardware.predict.forest import Forest

MAX_BYTES = 2_000_000_000
PLAIN = re.compile(r"[biuf][1248]")  # dtypes without objects
KINDS = {"feature": "i", "threshold": "f", "left_child": "i", "right_child": "i"}

# Operations that bypass find_class (copyreg's cache may give a function for an extension code), or that no forest
# needs.
REFUSED = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "DUP", "NEXT_BUFFER", "READONLY_BUFFER"}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
# Operations whose result is cheap to use twice. Tuples are not: pairs of pairs of ..., fifty deep, have 2**50 members
# to hash when they are a key.
CHEAP_TO_REPEAT = {
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "EMPTY_LIST", "EMPTY_DICT",
}  # fmt: skip
MAX_REPEATS = 16

# name in the pickle -> what replaces it; with the names since 0.22 and those before
NAMES = {
    "sklearn.ensemble._forest.RandomForestRegressor": "forest",
    "sklearn.ensemble.forest.RandomForestRegressor": "forest",
    "sklearn.tree._classes.DecisionTreeRegressor": "estimator",
    "sklearn.tree.tree.DecisionTreeRegressor": "estimator",
    "sklearn.tree._tree.Tree": "tree",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray._reconstruct": "array",
    "numpy._core.multiarray._reconstruct": "array",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy._core.multiarray.scalar": "scalar",
}


class _Kept:
    """Keeps the arguments that a pickle passes. Each reading makes its own subclasses, one for each allowed name."""

    kind = ""

    def __new__(cls, *arguments: Any) -> _Kept:
        kept = super().__new__(cls)
        kept.arguments = arguments
        kept.state = None
        return kept

    def __init__(self, *arguments: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content))
        self._path = path
        self._stand_ins: dict[str, type[_Kept]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in NAMES:
            shown = (
                full[:200] if full[:200].isprintable() else ascii(full[:200])
            )  # no terminal escapes in a message
            raise HardwareError(
                f"{self._path} asks for {shown}, which no scikit-learn forest needs. Nothing of it was run. Do not use "
                "this file; fetch the package again from nn-Meter's release address"
            )
        return self._stand_ins.setdefault(full, type("Kept", (_Kept,), {"kind": NAMES[full]}))


def read_forest(path: Path) -> Forest:
    """Read the forest in a pickle of a RandomForestRegressor (scikit-learn up to 0.24).

    Raises HardwareError for any other file. It names the file and the global that the file asks for.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES / 1e9:g} GB")
        content = path.read_bytes()
        _check_operations(content)
        return _forest(_Reader(content, path).load(), max_bytes=len(content))
    except HardwareError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise HardwareError(
            f"{path} holds no scikit-learn forest that can be read: {type(error).__name__}: {str(error)[:300]}. "
            "Remove the package's folder, so that it is fetched or unpacked again"
        ) from error


def _check_operations(content: bytes) -> None:
    """Check the program without running it. Raises ValueError if it bypasses find_class, hangs or exhausts memory."""
    repeats = 0
    memo: dict[int, str] = {}  # position -> the operation that made what is kept there
    before = ""
    for operation, found, _ in pickletools.genops(content):
        name, argument = operation.name, cast("int | None", found)
        if name in REFUSED:
            raise ValueError(f"it uses the operation {name}, which no forest needs; nothing of it was run")
        if name in PUTS:
            at = len(memo) if argument is None else argument  # as pickle counts
            if (
                not 0 <= at <= len(memo) + 1
            ):  # picklers count up, and the reader allocates memory up to the highest position
                raise ValueError("it asks for more memory than a file of its size can need")
            memo[at] = before
        elif name in GETS and memo.get(argument or 0) not in CHEAP_TO_REPEAT:
            repeats += 1
            if repeats > MAX_REPEATS:
                raise ValueError("it repeats tuples, which only a file does that is meant to hang its reader")
        before = name


def _forest(top: Any, *, max_bytes: int) -> Forest:
    """The forest in an unpickled object.

    Args:
        top: the object.
        max_bytes: size of the file. Larger trees repeat one tree many times.
    """
    estimators = _state(top, "forest")["estimators_"]
    if not isinstance(estimators, list) or not estimators:
        raise ValueError("it has no trees")
    trees, features, size = [], set(), 0
    for estimator in estimators:
        tree = _state(estimator, "estimator")["tree_"]
        arrays = _state(tree, "tree")
        features.add(_whole(tree.arguments[0]))
        nodes, values = _array(arrays["nodes"]), _array(arrays["values"])
        size += nodes.nbytes + values.nbytes
        if size > max_bytes:
            raise ValueError("its trees are larger than the file")
        if nodes.ndim != 1 or any(nodes.dtype[key].kind != kind for key, kind in KINDS.items()):
            raise ValueError("its trees have nodes of another type")
        if values.shape != (len(nodes), 1, 1) or values.dtype.kind != "f":
            raise ValueError(f"its trees have values of shape {values.shape} and type {values.dtype}")
        trees.append(
            {
                "feature": nodes["feature"],
                "threshold": nodes["threshold"],
                "left": nodes["left_child"],
                "right": nodes["right_child"],
                "value": values[:, 0, 0],
            }
        )
    if len(features) != 1:
        raise ValueError("its trees take different numbers of features")
    return Forest.joined(trees, base=0.0, weight=1 / len(trees), n_features=features.pop())


def _state(kept: Any, kind: str) -> dict[str, Any]:
    if not isinstance(kept, _Kept) or kept.kind != kind or not isinstance(kept.state, dict):
        raise ValueError(f"something else is in the place of a {kind}")
    return kept.state


def _whole(value: Any) -> int:
    """An integer of Python or numpy. Anything else is refused untouched: to print or to multiply it may be a trap."""
    if isinstance(value, _Kept) and value.kind == "scalar":
        kind, content = value.arguments
        value = np.frombuffer(content, _dtype(kind), count=1)[0].item()
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError("something else is in the place of a whole number")
    return value


def _array(kept: Any) -> NDArray[Any]:
    """Array from the arguments of numpy's __setstate__: version, shape, dtype, column order, bytes."""
    if not isinstance(kept, _Kept) or kept.kind != "array":
        raise ValueError("something else is in the place of an array")
    _, shape, kind, by_columns, content = kept.state
    if not isinstance(shape, tuple) or len(shape) > 3:
        raise ValueError("an array has a shape that no tree has")
    shape = tuple(_whole(each) for each in shape)
    dtype = _dtype(kind)
    if not isinstance(content, bytes) or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} does not fit its bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


def _dtype(kept: Any) -> np.dtype[Any]:
    """dtype from numpy's arguments and state: version, byte order, subarray, names, fields, item size, ..."""
    if not isinstance(kept, _Kept) or kept.kind != "dtype":
        raise ValueError("something else is in the place of a dtype")
    name = kept.arguments[0]
    if not isinstance(name, str):
        raise ValueError("a dtype has no name")
    order = kept.state[1] if kept.state else "="
    order = order if order in ("<", ">") else "="
    if PLAIN.fullmatch(name):
        return np.dtype(order + name)
    if not re.fullmatch(r"V\d+", name) or not kept.state or kept.state[2] is not None:
        raise ValueError(f"an array has the type {name[:20]!r}, not numbers")
    names, fields, size = kept.state[3:6]
    if len(names) > 16:
        raise ValueError("an array has more fields than a node")
    formats = [_dtype(fields[each][0]) for each in names]
    if any(each.names for each in formats):
        raise ValueError("an array has fields within fields")
    return np.dtype(
        {
            "names": list(names),
            "formats": formats,
            "offsets": [_whole(fields[each][1]) for each in names],
            "itemsize": _whole(size),
        }
    )
