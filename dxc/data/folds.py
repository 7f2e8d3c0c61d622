"""Labels, regions and overlaps -> folds: which chips train and which validate. Indices into the ordered chip list."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from dxc.errors import ConfigError, DataError, require_whole

log = logging.getLogger(__name__)

SPLITS = ("kfold", "holdout", "region", "given")
HOLDOUT_SHARE = 0.2
UNEVEN = 1.5  # a fold that validates this many times its share is reported: a group is too large

OVERLAP_HELP = (
    "Chips that overlap on the ground stay together. Cut fewer or smaller chips of the same ground, add chips "
    "elsewhere, or use data.split=region. If the places in the files are wrong: source.check_georeference=false"
)


class Fold(NamedTuple):
    """One training and validation split; indices are sorted int64 arrays."""

    name: str
    train: np.ndarray
    val: np.ndarray


def make_folds(
    labels: Sequence[int] | np.ndarray,
    regions: Sequence[str],
    *,
    groups: Sequence[int] | np.ndarray | None = None,
    split: str = "kfold",
    folds: int = 5,
    seed: int = 42,
    held_out: np.ndarray | None = None,
    classes: Sequence[str] = ("F", "T"),
    unit: str = "chip",
) -> list[Fold]:
    """Folds of chips given in (region, name) order. Chips of one group are never on both sides.

    kfold: scikit-learn's StratifiedKFold(folds, shuffle=True, random_state=seed), the published protocol.
    holdout: one stratified 80/20 split.
    region: each region validates once, and all others train.
    given: one fold, in which the images that their publisher set aside validate. All other splits leave these out, so
    that what was chosen by them can still be judged by images that had no part in the choice.
    Where chips share a group, kfold uses StratifiedGroupKFold, and holdout takes the most even of its five folds.
    Regions that share a group validate together, as one fold.

    Args:
        labels: (n,) 0, 1, ...; of chips 1 = crossing.
        regions: (n,) name of each chip's region.
        groups: numbers (n,), equal for chips that show the same ground (dxc.geo.overlaps). None: no two chips do.
        split: kfold, holdout, region or given.
        folds: number of folds for kfold.
        seed: of the split.
        held_out: (n,) bool, the images that their publisher set aside; None: he set none aside.
        classes: name of each label, for messages.
        unit: what an image is called in messages, chip or image.

    Raises:
        ConfigError: an unknown split, or an impossible number.
        DataError: the chips do not allow the split.
    """
    from sklearn.model_selection import StratifiedKFold, train_test_split

    labels = np.asarray(labels)
    everything = np.arange(len(labels))
    if split not in SPLITS:
        raise ConfigError(f"data.split: unknown split '{split}'; there are {', '.join(SPLITS)}")
    require_whole("data.fold_seed", seed, at_least=0)
    if split == "given":
        if held_out is None:
            raise ConfigError(
                f"data.split=given: these {unit}s have no split of their own; use data.split=kfold"
            )
        return [Fold("given", everything[~held_out], everything[held_out])]
    if held_out is not None and split == "region":
        raise ConfigError(f"data.split=region: these {unit}s have no regions; use data.split=given or kfold")
    if held_out is not None:
        own = everything[~held_out]
        inner = make_folds(
            labels[own], [regions[i] for i in own], split=split, folds=folds, seed=seed, classes=classes, unit=unit,
            groups=None if groups is None else np.asarray(groups)[own],
        )  # fmt: skip
        return [Fold(name, own[train], own[val]) for name, train, val in inner]
    groups = everything if groups is None else np.asarray(groups)
    grouped = len(np.unique(groups)) < len(groups)
    if split == "region":
        return _by_region(labels, np.asarray(regions), groups)

    if split == "kfold":
        require_whole("data.folds", folds, at_least=2)
    needed = folds if split == "kfold" else round(1 / HOLDOUT_SHARE)  # one chip of each class validates
    for label, name in enumerate(classes):
        count = int((labels == label).sum())
        if count < needed:
            raise DataError(
                f"class {name} has {count} {unit}s, data.split={split} needs at least {needed}; "
                + (f"lower data.folds or add {unit}s" if split == "kfold" else f"add {unit}s")
            )
    if grouped:
        return _by_groups(labels, groups, split, needed, seed)
    if split == "holdout":
        train, val = train_test_split(everything, test_size=HOLDOUT_SHARE, stratify=labels, random_state=seed)
        return [Fold("holdout", np.sort(train), np.sort(val))]
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return [
        Fold(f"fold{number}", train, val)
        for number, (train, val) in enumerate(splitter.split(everything, labels), start=1)
    ]


def _by_groups(labels: np.ndarray, groups: np.ndarray, split: str, count: int, seed: int) -> list[Fold]:
    """Folds of whole groups. Each class is spread as evenly as the groups allow; a holdout is the most even fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    largest = np.unique(groups, return_counts=True)[1].max()
    try:
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        sides = list(splitter.split(labels, labels, groups))
    except ValueError as error:  # fewer groups than folds
        raise DataError(_inseparable(split, count, largest, len(labels))) from error
    # share of each class that validates in each fold: 1 / count would be even
    there = np.unique(labels)
    of_class = np.array([(labels == label).sum() for label in there])
    validating = np.array([[(labels[val] == label).sum() for label in there] for _, val in sides])
    shares = validating / of_class
    most_even = int(np.abs(shares - 1 / count).sum(axis=1).argmin())
    chosen = [most_even] if split == "holdout" else list(range(count))
    if (shares[chosen] == 0).any() or (shares[chosen] == 1).any():
        raise DataError(_inseparable(split, count, largest, len(labels)))
    uneven = (shares > UNEVEN / count) & (validating > of_class / count + 1)  # one chip more is only rounding
    if uneven[chosen].any():
        log.warning(
            "data.split=%s: a fold validates %.0f %% of a class instead of %.0f %%, because overlaps join %d of %d "
            "chips into one group. %s",
            split, 100 * shares[chosen].max(), 100 / count, largest, len(labels), OVERLAP_HELP,
        )  # fmt: skip
    names = ["holdout"] if split == "holdout" else [f"fold{number}" for number in range(1, count + 1)]
    return [Fold(name, *sides[number]) for name, number in zip(names, chosen, strict=True)]


def _inseparable(split: str, count: int, largest: int, chips: int) -> str:
    advice = "Lower data.folds. " if split == "kfold" and count > 2 else ""
    return (
        f"data.split={split} needs {count} parts with chips of both classes, but overlaps join {largest} of {chips} "
        f"chips into one group. {advice}{OVERLAP_HELP}"
    )


def _by_region(labels: np.ndarray, regions: np.ndarray, groups: np.ndarray) -> list[Fold]:
    """Each region validates once, and all others train. Regions that overlap validate together."""
    everything = np.arange(len(labels))
    names = sorted(set(regions.tolist()))
    if len(names) < 2:
        raise DataError(
            f"data.split=region needs at least two regions; there is only {', '.join(names) or 'none'}; "
            "use data.split=kfold"
        )
    of_group: defaultdict[int, set[str]] = defaultdict(set)
    for group, region in zip(groups.tolist(), regions.tolist(), strict=True):
        of_group[group].add(region)
    parts = _linked(names, {frozenset(linked) for linked in of_group.values() if len(linked) > 1})
    if len(parts) < 2:
        raise DataError(
            f"data.split=region needs at least two separate regions, but chips of {', '.join(names)} overlap on the "
            "ground; use data.split=kfold"
        )
    result = []
    for part in parts:
        if len(part) > 1:
            log.warning(
                "regions %s overlap on the ground: they validate together, as one fold", ", ".join(part)
            )
        inside = np.isin(regions, part)
        result.append(Fold(" and ".join(part), everything[~inside], everything[inside]))
    for fold in result:
        if len(set(labels[fold.train])) < 2:
            raise DataError(
                f"without region {fold.name} the training chips are all of one class; use data.split=kfold"
            )
    return result


def _linked(names: Sequence[str], links: Iterable[frozenset[str]]) -> list[list[str]]:
    """Join linked names into parts. Each part is sorted, and parts are in the order of their first names."""
    parts = [{name} for name in names]
    for link in links:
        touched = [part for part in parts if part & link]
        parts = [part for part in parts if not part & link] + [set(chain(*touched))]
    return sorted(sorted(part) for part in parts)
