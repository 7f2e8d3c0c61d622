"""The images that a deployed network is judged by: those that validated it, as small as they can be sent."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dxc.config.checked import checked
from dxc.config.plan import Data, Source
from dxc.data.images import Images, LabelledImages
from dxc.deploy.device import Payload
from dxc.deploy.metadata import ANY, Metadata
from dxc.errors import DataError, ExportError
from dxc.text import counted
from dxc.untrusted import load_yaml

log = logging.getLogger(__name__)

MOST_RANDOM, MAX_RANDOM_BYTES = 100, 8_000_000
WITHOUT_LABELS = "Without labels, images=random still gives latency, memory and energy, and no accuracy"


@dataclass(frozen=True)
class ProofImages:
    """Images, with labels unless they are random, as files for a device.

    Attributes:
        images: .npy (n, C, H, W): uint8 that the device rescales as the network's file says, or floats that are fed as
            they are (prepared).
        labels: .npy int64 (n,); None: there are none.
        prepared: see images.
        count: number of images.
        described: what they are, in words.
    """

    images: Payload
    labels: Payload | None
    prepared: bool
    count: int
    described: str


def random_images(metadata: Metadata, *, run_id: str) -> ProofImages:
    """Random images without labels, as the network is fed: for its latency and energy, which hardly depend on what an
    image shows. They are the same for all networks of one size.

    Args:
        metadata: of the network's file.
        run_id: for messages.

    Raises:
        ExportError: the network takes images of any size.
    """
    if metadata.size == ANY:
        raise ExportError(
            f"run {run_id}: its network takes images of any size, so images=random has none; export it for one size "
            "(data.size=PIXELS), or name its own images (images=test)"
        )
    shape = (len(metadata.channels), *metadata.size)
    count = max(1, min(MOST_RANDOM, MAX_RANDOM_BYTES // (2 * math.prod(shape))))
    pixels = np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32).astype(np.float16)
    described = f"{counted(count, 'random image')} without labels"
    size = pixels.nbytes / 1e6
    return ProofImages(
        Payload(_npy(pixels), f"{described} ({size:.1f} MB as {pixels.dtype})"), None, True, count, described
    )


def read_config(path: Path, run_id: str) -> dict[str, Any]:
    """The sections source and data of a run's config.yaml, which is data: nothing in it is resolved.

    Raises DataError where the file does not have them.
    """
    try:
        config = load_yaml(path)
        sections = {key: dict(config[key]) for key in ("source", "data")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"run {run_id}: its config.yaml does not say what it was trained on: {error}"
        ) from error
    return sections


def proof_images(
    config: Mapping[str, Any],
    *,
    run_id: str,
    fold: str,
    data_hash: str,
    metadata: Metadata,
    cache_dir: str,
    root: str | None,
    progress: bool,
) -> ProofImages:
    """The images that a run's exported network was not trained on: those that validated its fold.

    Places come from the command, never from the run: its own folder of images has to be named again.

    Args:
        config: sections source and data of the run's configuration.
        run_id: for messages.
        fold: whose network was exported (tag dxc.exported_fold).
        data_hash: of the images that the run was trained on (tag dxc.data).
        metadata: of the network's file.
        cache_dir: where images are kept.
        root: the user's folder or archive of images; None: the source makes or fetches them.
        progress: whether to show progress bars.

    Raises:
        DataError: there are no such images, they are others than those of the run, or they have no labels.
        ConfigError: the sections cannot work.
    """
    source = _source_section(config["source"], run_id, cache_dir, root, progress)
    section = dict(config["data"])
    section |= {
        key: value for key, value in (("cache_dir", cache_dir), ("progress", progress)) if key in section
    }
    section |= {"num_workers": 0}
    data = checked(Data, section, "data")
    if tuple(data.channels) != metadata.channels:
        takes, has = ", ".join(metadata.channels), ", ".join(data.channels)
        raise ExportError(f"run {run_id}: its network takes {takes}, and its images have {has}")
    module = data.build(source=checked(Source, source, "source").build())
    try:
        module.prepare_data()
    except DataError as error:
        raise DataError(f"{error}\n{WITHOUT_LABELS}") from error
    images: Images = module.cache
    if images.data_hash != data_hash:
        raise DataError(
            f"run {run_id} was trained on other images than {module.source.noun}: their content is "
            f"{images.data_hash}, that of the run {data_hash or 'not known'} (tag dxc.data). Name the images that it "
            f"was trained on: source.root=PATH. {WITHOUT_LABELS}"
        )
    found = [each.val for each in module.folds if each.name == fold]
    if not found:
        names = ", ".join(each.name for each in module.folds)
        raise DataError(f"run {run_id}: its network is of the fold {fold or '?'}, and there are {names}")
    part = "that are set aside for tests" if fold == "given" else f"that validate {fold}"
    return _packed(images, found[0], f"{module.source.noun}: {counted(len(found[0]), images.unit)} {part}")


def _source_section(
    section: Mapping[str, Any], run_id: str, cache_dir: str, root: str | None, progress: bool
) -> dict[str, Any]:
    """The section source with the places of this command."""
    said = section.get("root")
    if said is not None and root is None:
        raise DataError(
            f"run {run_id} was trained on images of the user's own, source.root={said!r:.300} as its configuration "
            "says. A path that comes from a store is not followed: name it, source.root=PATH"
        )
    places: dict[str, Any] = {"root": root, "cache_dir": cache_dir, "progress": progress, "jobs": None}
    return {**section, **{key: value for key, value in places.items() if key in section}}


def _packed(images: Images, indices: np.ndarray, described: str) -> ProofImages:
    labels = np.asarray(images.labels)[indices].astype(np.int64)
    if not len(labels):
        raise DataError(
            f"{described}: there are no images with labels, and accuracy needs labels. {WITHOUT_LABELS}"
        )
    if isinstance(images, LabelledImages):
        pixels, prepared = np.ascontiguousarray(images.pixels[indices]), False
    else:
        if len(np.unique(np.asarray(images.sizes)[indices], axis=0)) > 1:
            raise DataError(
                f"{described}: they have several sizes, and the network takes one; train with data.size=PIXELS"
            )
        pixels, prepared = _smallest(images.images(indices)), True
    size = pixels.nbytes / 1e6
    return ProofImages(
        Payload(_npy(pixels), f"{described} ({size:.1f} MB as {pixels.dtype})"),
        Payload(_npy(labels), "labels"),
        prepared,
        len(labels),
        described,
    )


def _smallest(values: np.ndarray) -> np.ndarray:
    """The same numbers in 16 bits, where they fit without a loss."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else values


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
