"""Chooses what scale.py trains on.

A source is described by a plain dict, a section of a configuration with what was found out about it: it is read by the
process that plans a study, and again by each rank of each run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dxc.errors import ConfigError
from dxc.scaling.images import (
    ChipImages,
    FolderImages,
    Images,
    MadeImages,
    Rank,
    found_chips,
    found_folder,
    found_made,
)


def described(
    source: Mapping[str, Any], data: Mapping[str, Any], *, size: int, folder: Path
) -> dict[str, Any]:
    """Look at a source once, before a study: what there is, and whether it can be used.

    Args:
        source: the section `source`.
        data: the section `data`.
        size: edge in pixels of the images of a source that can give any.
        folder: where the list of files is kept; it may be long.

    Returns a plain dict with kind (made | folder | shards | chips), classes, channels, size, images (to train; 0 where
    that is not known), digest and what images_of() needs.

    Raises:
        ConfigError: a value cannot work.
        DataError: the images cannot be used.
    """
    channels = len(data["channels"])
    match source.get("kind"):
        case "device_images":
            return found_made(source, channels, size)
        case "imagefolder":
            return found_folder(source, channels, size, folder)
        case "webdataset":
            return _shards().found_shards(source, channels, size, folder)
    if "_target_" not in source:
        raise ConfigError(
            "source: choose source=device_images, imagefolder, webdataset, chips, synthetic or cifar10"
        )
    return found_chips(source, data)


def images_of(about: Mapping[str, Any], rank: Rank) -> Images:
    """The images that described() found, for one rank."""
    match about["kind"]:
        case "made":
            return MadeImages(about, rank)
        case "folder":
            return FolderImages(about, rank)
        case "shards":
            return _shards().ShardImages(about, rank)
        case "chips":
            return ChipImages(about, rank)
    raise ConfigError(f"there is no source of images of the kind {about['kind']}")


def _shards() -> Any:
    """The module that reads shards, if what it needs is installed."""
    try:
        from dxc.scaling import shards
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"source=webdataset needs a package that is not here, {error.name}: "
            "pip install -e '.[webdataset]' -c constraints.txt"
        ) from error
    return shards
