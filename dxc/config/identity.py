"""Identities: hashes of the parts of a configuration that results depend on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dxc.config.names import flatten
from dxc.models.registry import canonical_knobs

IDENTITY_GROUPS = (
    "model",
    "task",
    "data",
    "source",
    "hardware",
    "optimizer",
    "scheduler",
    "trainer",
    "base_digest",
    "compress",
    "score",
    "seed",
)
NOT_IDENTITY = {
    # where files lie, how they are read and what is shown: nothing a result depends on
    # and names: of the set, and of the classes, which the source's content decides
    "data": {"cache_dir", "num_workers", "progress", "classes", "dataset"},
    "source": {"cache_dir", "root", "jobs", "on_bad_chip", "progress", "classes"},
    # engines train the same batches in the same order; the tag dxc.engine says which one it was
    "trainer": {"engine", "progress"},
    "hardware": {
        # the trainer's own keys, which follow from these, are identity
        "accelerator",
        "precision",
        # how the device is reached. Which machine it was in the end is in the tag dxc.measured_on
        "host",
        "python",
        "remote",
        "emulated",
        # whether it is measured; the result is the same
        "measure",
        "schedule",
        # where packages of predictors lie. Their names are identity; what was found there is in the tag dxc.packages
        "packages_dir",
        "packages_url",
        # limits judge a result and do not change it
        "limits",
    },
}
"""Keys that no number of a run depends on. All others of IDENTITY_GROUPS tell two designs apart."""
UNRECORDED = frozenset(
    {
        # what follows from other keys: channels, task, data.size, hardware
        "model.in_channels", "model.num_classes", "boxes", "data.boxes", "data.classes", "data.dataset",
        "source.classes", "source.boxes", "source.size_m", "trainer.accelerator", "hardware.precision",
        # one class each, and how it is built
        "data._target_", "trainer._target_", "optimizer._partial_", "scheduler._partial_",
        # how a command was run
        "progress", "data.progress", "trainer.progress", "cache_dir", "data.cache_dir", "source.cache_dir", "again",
        "kept_gb", "preview",
    }
)  # fmt: skip
"""Keys that are no params or tags of a run: they tell no two designs apart. Its config.yaml has them."""


def is_identity(key: str) -> bool:
    """Whether a result can depend on a flat key, such as hardware.threads."""
    group, *rest = key.split(".")
    return group in IDENTITY_GROUPS and not (rest and rest[0] in NOT_IDENTITY.get(group, ()))


def canonical(cfg: dict[str, Any]) -> dict[str, Any]:
    """The canonical form of a resolved configuration. Configurations that give the same result have equal forms.

    Keys that no result depends on are removed. So are knobs without an effect (pool knobs without a pool, folds without
    k-fold). Equal numbers are spelled alike (8 and 8.0).
    """
    kept = {
        group: (
            {key: value for key, value in cfg[group].items() if is_identity(f"{group}.{key}")}
            if isinstance(cfg[group], dict)
            else cfg[group]
        )
        for group in IDENTITY_GROUPS
        if group in cfg
    }
    if kept.get("base_digest", "") is None:
        del kept["base_digest"]  # networks that begin with random weights
    if "model" in kept:
        kept["model"] = canonical_knobs(kept["model"])
    if isinstance(predictors := kept.get("hardware", {}).get("predictors"), list):
        kept["hardware"]["predictors"] = sorted(map(str, predictors))  # the mean has no order
    if isinstance(devices := kept.get("trainer", {}).get("devices"), list):
        kept["trainer"]["devices"] = len(devices)  # how many of them, not which
    if not (compress := canonical_compression(kept.get("compress", {}))):
        kept.pop("compress", None)
    else:
        kept["compress"] = compress
    data = kept.get("data", {})
    if data.get("split") != "kfold":
        data.pop("folds", None)
    if data.get("split") in ("region", "given"):
        data.pop("fold_seed", None)
    if data.get("augment") == "none":
        data.pop("pad", None)
    if data.get("normalise") != "fixed":
        for key in ("mean", "std"):
            data.pop(key, None)
    if not {"ndwi", "ndvi"} & set(data.get("channels", ())):
        data.pop("repair", None)
    return _one_spelling(kept)


def canonical_compression(compress: dict[str, Any]) -> dict[str, Any]:
    """A section `compress` without the keys that have no effect; {} where nothing is compressed.

    Fine-tuning follows pruning only, and ranges are found on images for static quantisation only.
    """
    kept = dict(compress)
    unused: set[str] = set()
    if not kept.get("fraction"):
        unused |= {"fraction", "align", "steps", "finetune_epochs", "finetune_lr"}
    elif not kept.get("finetune_epochs"):
        unused |= {"steps", "finetune_lr"}
    if kept.get("steps") == 1:
        unused |= {"steps"}
    if kept.get("quantise") != "static":
        unused |= {"calibration_images", "calibration_seed"}
    if kept.get("quantise") == "none":
        unused |= {"quantise"}
    return {key: value for key, value in kept.items() if key not in unused}


def trial_hash(cfg: dict[str, Any]) -> str:
    """Identity of a trial: hash of the canonical configuration (tag dxc.trial)."""
    return digest(canonical(cfg))


def design_hash(cfg: dict[str, Any]) -> str:
    """Identity of a design: the same without the seed, so that its repeats share it (tag dxc.design)."""
    return digest({key: value for key, value in canonical(cfg).items() if key != "seed"})


def digest(content: Any) -> str:
    """12 hexadecimal digits of anything that JSON can hold."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=6).hexdigest()


def _one_spelling(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _one_spelling(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_one_spelling(item) for item in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def params_and_tags(cfg: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a resolved configuration into MLflow params and tags, both with flat keys.

    Params are the canonical configuration: one identity has one set of params, because a trial may be resumed
    elsewhere and MLflow never changes a param. Tags are the settings that no result depends on. Left out are knobs
    without an effect, the keys that say where the run is recorded, and those of UNRECORDED.
    """
    params = {key: value for key, value in flatten(canonical(cfg)).items() if key not in UNRECORDED}
    tags = {
        key: value
        for key, value in flatten(cfg).items()
        if not is_identity(key)
        and key.split(".")[0] not in ("study", "tracking", "search")
        and key not in UNRECORDED
    }
    return params, tags
