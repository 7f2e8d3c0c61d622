"""Regression trees as plain arrays, in which a predictor package stores them, and their evaluation.

The arrays do not depend on the version of scikit-learn that trained the trees, and they contain no code.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dxc.errors import HardwareError
from dxc.files import write_atomically

LEAF = -1
MAX_NODES = 2**31 - 1  # positions are int32
MAX_FEATURES = 10_000
MAX_BYTES = 4_000_000_000  # unpacked
ARRAYS = {
    "feature": np.int32,
    "threshold": np.float64,
    "left": np.int32,
    "right": np.int32,
    "value": np.float64,
    "roots": np.int32,
    "base": np.float64,
    "weight": np.float64,
    "n_features": np.int64,
}


@dataclass(frozen=True)
class Forest:
    """The nodes of all trees in common arrays. The prediction is base + weight x the sum of the leaves' values.

    Attributes:
        weight: 1 / number of trees for a forest (the mean), the learning rate for boosting.
        feature: int32 per node; LEAF at a leaf.
        left: int32 per node, position of the left child in the same arrays.
        right: int32 per node, position of the right child.
        threshold: float64 per node.
        value: float64 per node.
        roots: position of each tree's root.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    roots: NDArray[np.int32]
    base: float
    weight: float
    n_features: int

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise ValueError(problem)

    def _problem(self) -> str:
        """What is wrong with the arrays; '' if their evaluation ends and stays inside of them."""
        nodes = len(self.feature)
        lengths = {len(array) for array in (self.threshold, self.left, self.right, self.value)}
        if lengths != {nodes} or not nodes or not len(self.roots):
            return "its arrays do not fit together"
        if not 1 <= self.n_features <= MAX_FEATURES:
            return f"it takes {self.n_features} features; 1 to {MAX_FEATURES} make sense"
        inner = self.feature != LEAF
        index = np.arange(nodes)
        if (self.feature[inner] < 0).any() or (self.feature >= self.n_features).any():
            return "a node uses a feature that does not exist"
        for child in (self.left, self.right):
            # children come after their parent, so no walk meets a node twice and every walk ends
            if (child[inner] <= index[inner]).any() or (child[inner] >= nodes).any():
                return "a node has a child outside of its tree"
        if (self.roots < 0).any() or (self.roots >= nodes).any():
            return "a root lies outside of its nodes"
        numbers = [self.threshold[inner], self.value[~inner], [self.base, self.weight]]
        if not all(np.isfinite(each).all() for each in numbers):
            return "it holds numbers that are not finite"
        return ""

    def predict(self, features: ArrayLike) -> NDArray[np.float64]:
        """Predictions (n,) for rows of features (n, n_features). All rows descend all trees at once.

        As in scikit-learn, features are rounded to float32 and go left where they are <= the threshold.
        """
        rows = np.asarray(features, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise ValueError(f"features must be (n, {self.n_features}), not {rows.shape}")
        node = np.broadcast_to(self.roots, (len(rows), len(self.roots))).copy()
        row = np.broadcast_to(np.arange(len(rows))[:, None], node.shape)
        walking = np.nonzero(self.feature[node] != LEAF)
        while len(walking[0]):
            at = node[walking]
            goes_left = rows[row[walking], self.feature[at]].astype(np.float64) <= self.threshold[at]
            after = np.where(goes_left, self.left[at], self.right[at])
            node[walking] = after
            still = self.feature[after] != LEAF
            walking = (walking[0][still], walking[1][still])
        return self.base + self.weight * self.value[node].sum(axis=1)

    @classmethod
    def joined(
        cls, trees: list[dict[str, NDArray[Any]]], *, base: float, weight: float, n_features: int
    ) -> Forest:
        """Make a forest from single trees.

        Args:
            trees: each with feature, threshold, left, right and value. Positions count from 0 in each tree, and are
                negative at a leaf.
            base: see Forest.
            weight: see Forest.
            n_features: number of features.

        Raises:
            ValueError: the trees are not sound.
        """
        sizes = np.array([len(tree["feature"]) for tree in trees])
        if not len(sizes) or not sizes.all() or sizes.sum() > MAX_NODES:
            raise ValueError("it has no trees, or one without nodes, or too many")
        roots = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        shift = np.repeat(roots, sizes)

        def together(key: str) -> NDArray[Any]:
            return np.concatenate([tree[key] for tree in trees])

        # checked before joining: afterwards a child beyond its own tree would be a node of the next tree
        leaf = together("left") < 0
        own_size = np.repeat(sizes, sizes)[~leaf]
        for key, limit in (("left", own_size), ("right", own_size), ("feature", n_features)):
            numbers = together(key)[~leaf]
            if (numbers < 0).any() or (numbers >= limit).any():
                raise ValueError(f"the {key} of a node is out of range in its tree")
        return cls(
            feature=np.where(leaf, LEAF, together("feature")).astype(np.int32),
            threshold=np.where(leaf, 0.0, together("threshold")),
            left=np.where(leaf, LEAF, together("left") + shift).astype(np.int32),
            right=np.where(leaf, LEAF, together("right") + shift).astype(np.int32),
            value=np.where(leaf, together("value"), 0.0),
            roots=roots.astype(np.int32),
            base=float(base),
            weight=float(weight),
            n_features=int(n_features),
        )

    @classmethod
    def from_sklearn(cls, model: Any) -> Forest:
        """Convert a fitted RandomForestRegressor, ExtraTreesRegressor or GradientBoostingRegressor (squared error)."""
        estimators = np.ravel(model.estimators_)
        boosted = hasattr(model, "learning_rate")
        trees = [
            {
                "feature": tree.feature,
                "threshold": tree.threshold,
                "left": tree.children_left,
                "right": tree.children_right,
                "value": tree.value[:, 0, 0],
            }
            for tree in (estimator.tree_ for estimator in estimators)
        ]
        return cls.joined(
            trees,
            base=float(model.init_.constant_.ravel()[0]) if boosted else 0.0,
            weight=model.learning_rate if boosted else 1 / len(trees),
            n_features=model.n_features_in_,
        )

    def save(self, path: Path) -> None:
        """Write a compressed .npz. The file appears only when it is complete."""
        arrays: dict[str, Any] = {k: np.asarray(getattr(self, k), kind) for k, kind in ARRAYS.items()}
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Forest:
        """Read a file of save(). Raises HardwareError if it holds no sound forest."""
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                    raise ValueError(f"it unpacks to over {MAX_BYTES / 1e9:g} GB")
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in ARRAYS}
            if any(arrays[key].dtype != kind for key, kind in ARRAYS.items()):
                raise ValueError("its arrays have other types")
            scalars = {key: arrays.pop(key).item() for key in ("base", "weight", "n_features")}
            if any(array.ndim != 1 for array in arrays.values()):
                raise ValueError("its arrays have other shapes")
            return cls(**arrays, **scalars)
        except Exception as error:  # numpy and zipfile may raise anything for a damaged file
            raise HardwareError(
                f"{path} holds no forest of a predictor: {error}. Remove it. It is made again from the .pkl beside "
                "it; if there is none, copy the package again"
            ) from error
