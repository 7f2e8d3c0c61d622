"""Hostile pickles: calls that bypass find_class, hangs, exhausted memory, and false trees."""

from __future__ import annotations

import copyreg
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor
from sklearn.tree._tree import Tree

from dxc.errors import HardwareError
from dxc.hardware.predict import pickles as module
from dxc.hardware.predict.packages import load_package
from dxc.hardware.predict.pickles import read_forest

NODE = np.dtype([("left_child", "<i8"), ("right_child", "<i8"), ("feature", "<i8"), ("threshold", "<f8")])
# x[0] <= 2 ? 3 : 5
NODES = np.array([(1, 2, 0, 2.0), (-1, -1, -2, -2.0), (-1, -1, -2, -2.0)], NODE)
VALUES = np.array([0.0, 3, 5]).reshape(3, 1, 1)


class _Is:
    """Pickles as a call of `function` with a state, like the real classes."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def _array(shape: Any, dtype: Any, content: Any) -> _Is:
    reconstruct = np.empty(0).__reduce__()[0]
    return _Is(reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content))


def _of(array: np.ndarray) -> _Is:
    return _array(array.shape, array.dtype, array.tobytes())


def _dtype(name: Any, names: Any = None, fields: Any = None, size: Any = -1) -> _Is:
    return _Is(np.dtype, (name, False, True), (3, "<", None, names, fields, size, 1, 0))


def _forest(*, nodes: Any = None, values: Any = None, n_features: Any = 1, trees: Any = 1) -> _Is:
    arrays = {"nodes": _of(NODES) if nodes is None else nodes, "values": values or _of(VALUES)}
    estimator = _Is(DecisionTreeRegressor, (), {"tree_": _Is(Tree, (n_features, None, 1), arrays)})
    return _Is(RandomForestRegressor, (), {"estimators_": [estimator] * trees})


def _changed(key: str, number: int) -> _Is:
    nodes = NODES.copy()
    nodes[key][0] = number
    return _of(nodes)


@pytest.mark.parametrize("protocol", [3, 4])
def test_the_forest_that_the_others_vary_is_sound(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "fc.pkl").write_bytes(pickle.dumps(_forest(n_features=np.int64(1)), protocol))
    assert read_forest(tmp_path / "fc.pkl").predict([[2.0], [2.1]]).tolist() == [3.0, 5.0]


def test_a_file_may_be_as_large_as_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(_forest(), 4)
    (tmp_path / "fc.pkl").write_bytes(content)
    monkeypatch.setattr(module, "MAX_BYTES", len(content))
    assert read_forest(tmp_path / "fc.pkl").predict([[2.0]]).tolist() == [3.0]
    monkeypatch.setattr(module, "MAX_BYTES", len(content) - 1)
    with pytest.raises(HardwareError, match="it is larger than"):
        read_forest(tmp_path / "fc.pkl")


def test_trees_beyond_one_frame_are_read(tmp_path: Path) -> None:
    """Bytes over 64 kB lie outside of a pickle's frames. Published trees are that large."""
    rng = np.random.default_rng(0)
    features = rng.random((3000, 2))
    fitted = RandomForestRegressor(3, random_state=0).fit(features, features.sum(axis=1))
    (tmp_path / "fc.pkl").write_bytes(pickle.dumps(fitted, 4))
    assert fitted.estimators_[0].tree_.node_count * NODE.itemsize > 1 << 16
    expected = fitted.predict(features[:50] * 0.9)
    actual = read_forest(tmp_path / "fc.pkl").predict(features[:50] * 0.9)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


def test_extension_codes_call_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension code that the process has seen before comes from copyreg's cache and bypasses find_class."""
    path, marker = tmp_path / "fc.pkl", tmp_path / "touched"
    monkeypatch.setitem(copyreg._extension_cache, 7, os.system)  # type: ignore[attr-defined]
    command = f"touch {marker}".encode()
    for code in (b"\x82\x07", b"\x83\x07\0", b"\x84\x07\0\0\0"):
        path.write_bytes(b"\x80\x02" + code + b"X" + len(command).to_bytes(4, "little") + command + b"\x85R.")
        with pytest.raises(HardwareError, match="operation EXT") as caught:
            read_forest(path)
        assert str(path) in str(caught.value)
        assert not marker.exists()


def _nested_key(depth: int, *, miscounted: bool = False) -> bytes:
    """A dict whose key is a pair of pairs of pairs ...: it has 2**depth members to hash.

    miscounted: texts are kept at position 0 again and again first. The reader counts positions, not how often it
    keeps; who counts the latter takes its tuples for the texts kept after them.
    """
    text = b"\x8c\x01a"
    again, texts = (depth, depth + 1) if miscounted else (0, 1)
    content = b"\x80\x04}" + (text + b"q\x000") * again + (text + b"\x940") * (texts - bool(again))
    for position in range(texts - 1, texts - 1 + depth):
        content += b"h%ch%c\x86\x940" % (position, position)
    return content + b"h%cNs." % (texts - 1 + depth)


DEEP_LIST: list[Any] = [0]
for _ in range(24):
    DEEP_LIST = [DEEP_LIST, DEEP_LIST]
DEEP_DTYPE: Any = np.dtype("<f8")
for _ in range(24):
    DEEP_DTYPE = _dtype("V8", ["a", "b"], {"a": (DEEP_DTYPE, 0), "b": (DEEP_DTYPE, 0)}, 8)
MANY = tuple(f"f{number}" for number in range(17))

TRAPS = {
    # what is made, and what the message says
    "key of tuples": (_nested_key(24), "repeats tuples"),
    "key of tuples, counted twice": (_nested_key(24, miscounted=True), "repeats tuples"),
    "doubled on the stack": (b"\x80\x02N2\x86.", "operation DUP"),
    "persistent id": (b"\x80\x02K\x01Q.", "operation BINPERSID"),
    "buffer": (b"\x80\x05\x97.", "operation NEXT_BUFFER"),
    "far memo": (b"\x80\x02N" + b"X\x10\0\0\0" + b"a" * 16 + b"q\x0a0.", "more memory"),
    "shape that multiplies": (_forest(nodes=_array((b"\0", 10**7), NODE, b"")), "whole number"),
    "shape of lists": (_forest(nodes=_array((DEEP_LIST,), NODE, b"")), "whole number"),
    "shape below zero": (_forest(nodes=_array((-1, -3), NODE, NODES.tobytes())), "whole number"),
    "huge shape": (_forest(nodes=_array((2**30, 2**30), NODE, NODES.tobytes())), "does not fit"),
    "too few bytes": (_forest(nodes=_array((4,), NODE, NODES.tobytes())), "does not fit"),
    "many dimensions": (_forest(nodes=_array((1,) * 40, NODE, b"")), "a shape that no tree has"),
    "type of lists": (_forest(nodes=_array((3,), _dtype(DEEP_LIST), b"")), "no name"),
    "types in types": (_forest(nodes=_array((3,), DEEP_DTYPE, b"")), "fields within fields"),
    "many fields": (
        _forest(nodes=_array((1,), _dtype("V8", MANY, {name: (np.dtype("u1"), 0) for name in MANY}, 8), b"")),
        "more fields",
    ),
    "objects": (_forest(nodes=_array((1,), np.dtype("O"), [1])), "not numbers"),
    "texts": (_forest(nodes=_array((3,), np.dtype("U2"), b"\0" * 24)), "not numbers"),
    "one tree a thousand times": (_forest(trees=1000), "larger than the file"),
    "features beyond integers": (_forest(n_features=10**30), "whole number"),
    "features in words": (_forest(n_features="1"), "whole number"),
    "two rows of nodes": (_forest(nodes=_of(NODES.reshape(1, 3))), "nodes of another type"),
    "plain nodes": (_forest(nodes=_of(np.zeros(3))), "fc.pkl"),
    "positions as floats": (
        _forest(nodes=_of(NODES.astype([(key, "<f8") for key in NODE.names or ()]))),
        "nodes of another type",
    ),
    "classes": (_forest(values=_of(np.zeros((3, 1, 2)))), "values of shape"),
    "values as integers": (_forest(values=_of(VALUES.astype(int))), "values of shape"),
    "child that wraps": (_forest(nodes=_changed("left_child", 2**32 + 1)), "left of a node"),
    "child before its parent": (_forest(nodes=_changed("left_child", 0)), "outside of its tree"),
    "feature beyond": (_forest(nodes=_changed("feature", 1)), "feature of a node"),
    "no trees": (_forest(trees=0), "no trees"),
    "estimator for a forest": (_Is(DecisionTreeRegressor, (), _forest().parts[2]), "the place of a forest"),
    "forest without a state": (_Is(RandomForestRegressor, ()), "the place of a forest"),
    "tree for an array": (
        _forest(nodes=_Is(Tree, (1, None, 1), (1, (3,), NODE, False, NODES.tobytes()))),
        "the place of an array",
    ),
    "array for a dtype": (_forest(nodes=_array((3,), _of(VALUES), NODES.tobytes())), "the place of a dtype"),
}


@pytest.mark.parametrize("case", TRAPS)
def test_traps_are_refused(case: str, tmp_path: Path) -> None:
    made, said = TRAPS[case]
    path = tmp_path / "fc.pkl"
    path.write_bytes(made if isinstance(made, bytes) else pickle.dumps(made, 4))
    with pytest.raises(HardwareError, match=said) as caught:
        read_forest(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    (tmp_path / "fusion_rules.json").write_text('{"BF_conv_relu": {"obey": true}}')
    with pytest.raises(HardwareError, match="fc.pkl"):
        load_package(tmp_path)
    assert not (tmp_path / "fc.npz").exists()


def test_a_depth_that_no_stack_holds_is_refused(tmp_path: Path) -> None:
    """100,000 nested lists, and a dtype that is its own field."""
    path = tmp_path / "fc.pkl"
    path.write_bytes(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(HardwareError, match="fc.pkl"):
        read_forest(path)
    own = _dtype("V8")
    own.parts = (*own.parts[:2], (3, "<", None, ("a",), {"a": (own, 0)}, 8, 1, 0))
    path.write_bytes(pickle.dumps(_forest(nodes=_array((1,), own, b"\0" * 8)), 4))
    with pytest.raises(HardwareError, match="fc.pkl"):
        read_forest(path)


def test_names_reach_the_terminal_without_escapes(tmp_path: Path) -> None:
    (tmp_path / "fc.pkl").write_bytes(b"\x80\x02c\x1b[2Jevil\nname\n.")
    with pytest.raises(HardwareError, match="evil.name") as caught:
        read_forest(tmp_path / "fc.pkl")
    assert "\x1b" not in str(caught.value)
