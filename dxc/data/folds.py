"""Labels and regions -> folds: which chips train and which validate. Indices into the ordered chip list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dxc.errors import ConfigError, DataError, require_whole

SPLITS = ("kfold", "holdout", "region")
HOLDOUT_SHARE = 0.2


class Fold(NamedTuple):
    """One training and validation split; indices are sorted int64 arrays."""

    name: str
    train: np.ndarray
    val: np.ndarray


def make_folds(
    labels: Sequence[int] | np.ndarray,
    regions: Sequence[str],
    *,
    split: str = "kfold",
    folds: int = 5,
    seed: int = 42,
) -> list[Fold]:
    """Folds of chips given in (region, name) order.

    kfold: scikit-learn's StratifiedKFold(folds, shuffle=True, random_state=seed), the published protocol.
    holdout: one stratified 80/20 split. region: each region validates once, trained on all others.
    Raises ConfigError for an unknown split, DataError where the chips do not allow the split.
    """
    from sklearn.model_selection import StratifiedKFold, train_test_split

    labels = np.asarray(labels)
    everything = np.arange(len(labels))
    if split not in SPLITS:
        raise ConfigError(f"data.split: unknown split '{split}'; there are {', '.join(SPLITS)}")
    require_whole("data.fold_seed", seed, at_least=0)
    counts = {name: int((labels == label).sum()) for name, label in (("F", 0), ("T", 1))}

    if split == "region":
        names = sorted(set(regions))
        if len(names) < 2:
            raise DataError(
                f"data.split=region needs at least two regions, there is only {', '.join(names) or 'none'}; "
                "use data.split=kfold"
            )
        of = np.asarray(regions)
        result = [Fold(name, everything[of != name], everything[of == name]) for name in names]
        for fold in result:
            if len(set(labels[fold.train])) < 2:
                raise DataError(
                    f"without region {fold.name} the training chips are all of one class; "
                    "use data.split=kfold"
                )
        return result

    if split == "kfold":
        require_whole("data.folds", folds, at_least=2)
    needed = folds if split == "kfold" else round(1 / HOLDOUT_SHARE)  # one chip of each class validates
    for name, count in counts.items():
        if count < needed:
            raise DataError(
                f"class {name} has {count} chips, data.split={split} needs at least {needed}; "
                + ("lower data.folds or add chips" if split == "kfold" else "add chips")
            )
    if split == "holdout":
        train, val = train_test_split(everything, test_size=HOLDOUT_SHARE, stratify=labels, random_state=seed)
        return [Fold("holdout", np.sort(train), np.sort(val))]
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return [
        Fold(f"fold{number}", train, val)
        for number, (train, val) in enumerate(splitter.split(everything, labels), start=1)
    ]
