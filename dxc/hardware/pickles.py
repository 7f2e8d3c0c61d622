"""scikit-learn forests out of pickles that arrive from elsewhere, without running what is in them.

A pickle is a program: it may name any function and call it. Here every name it may ask for stands for an inert
object of ours, made anew for each file, that only keeps what it is given; any other name is refused. Arrays are
decoded from their bytes. (nn-Meter's packages are pickles of scikit-learn 0.23, which today's refuses to load.)
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dxc.errors import HardwareError
from dxc.hardware.forest import Forest

MAX_BYTES = 2_000_000_000
PLAIN = re.compile(r"[biuf][1248]")  # dtypes without objects

# name in the pickle -> what stands for it; both the names of 0.22 and later and those before
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
    """Keeps what a pickle hands over. Subclasses are made for one reading each and only say what they stand for."""

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
            raise HardwareError(
                f"{self._path} asks for {full}, which no scikit-learn forest needs. Nothing of it was run. Do not use "
                "this file; fetch the package anew from where nn-Meter publishes it"
            )
        return self._stand_ins.setdefault(full, type("Kept", (_Kept,), {"kind": NAMES[full]}))


def read_forest(path: Path) -> Forest:
    """The forest in a pickle of a RandomForestRegressor (scikit-learn up to 0.24), as plain arrays.

    Raises HardwareError that names the file, and the global it asked for, where the file is anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES / 1e9:g} GB")
        content = path.read_bytes()
        _check_memo(content)
        top = _Reader(content, path).load()
        return _forest(top)
    except HardwareError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        raise HardwareError(
            f"{path} holds no scikit-learn forest that can be read: {type(error).__name__}: {error}. Remove the "
            "package's folder, so that it is fetched or unpacked anew"
        ) from error


def _check_memo(content: bytes) -> None:
    """Refuse positions in the memo that would make the reader allocate without bound."""
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) < len(content):
            raise ValueError("it asks for more memory than a file of its size can need")


def _forest(top: Any) -> Forest:
    state = _state(top, "forest")
    trees, features = [], set()
    for estimator in state["estimators_"]:
        tree = _state(estimator, "estimator")["tree_"]
        arrays = _state(tree, "tree")
        features.add(int(_number(tree.arguments[0])))
        nodes, values = _array(arrays["nodes"]), _array(arrays["values"])
        if values.shape != (len(nodes), 1, 1):
            raise ValueError(f"its trees have values of shape {values.shape}")
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
        raise ValueError(f"where a {kind} should be is something else")
    return kept.state


def _number(value: Any) -> int:
    if isinstance(value, _Kept) and value.kind == "scalar":
        kind, content = value.arguments
        return np.frombuffer(content, _dtype(kind), count=1)[0]
    return value


def _array(kept: Any) -> NDArray[Any]:
    """Array from what numpy's __setstate__ is given: version, shape, dtype, column order, bytes."""
    if not isinstance(kept, _Kept) or kept.kind != "array":
        raise ValueError("where an array should be is something else")
    _, shape, kind, by_columns, content = kept.state
    dtype = _dtype(kind)
    if not isinstance(content, bytes) or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} does not fit its bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


def _dtype(kept: Any) -> np.dtype[Any]:
    """dtype from numpy's arguments and state: version, byte order, subarray, names, fields, item size, ..."""
    if not isinstance(kept, _Kept) or kept.kind != "dtype":
        raise ValueError("where a dtype should be is something else")
    name = str(kept.arguments[0])
    order = kept.state[1] if kept.state else "="
    order = order if order in ("<", ">") else "="
    if PLAIN.fullmatch(name):
        return np.dtype(order + name)
    if not re.fullmatch(r"V\d+", name) or not kept.state or kept.state[2] is not None:
        raise ValueError(f"an array has the type {name}, not numbers")
    names, fields, size = kept.state[3:6]
    return np.dtype(
        {
            "names": list(names),
            "formats": [_dtype(fields[each][0]) for each in names],
            "offsets": [fields[each][1] for each in names],
            "itemsize": size,
        }
    )
