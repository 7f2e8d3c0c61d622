"""Hydra's configuration -> plain containers; the resolvers that conf/ uses."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dxc.errors import ConfigError

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent


SMALL_IMAGE = 64  # pixels; a first stride of 2 leaves smaller images too few for four more halvings
TYPICAL_SIZE = 100  # pixels; what networks are costed for where chips may have any size


def image_size(size: int | str) -> int:
    """Edge in pixels of the image that costs are computed for: data.size, or TYPICAL_SIZE where chips may have any
    size."""
    return TYPICAL_SIZE if isinstance(size, str) else size


def stem_stride(size: int | str) -> int:
    """Stride of the first convolution that suits images of this edge: 1 for small ones, else 2."""
    return 1 if image_size(size) < SMALL_IMAGE else 2


def content_digest(path: str | None) -> str | None:
    """16 hexadecimal digits of a file's content; None for None, and where it cannot be read."""
    if path is None:
        return None
    try:
        about = Path(path).stat()
        return _digest_of(path, about.st_mtime_ns, about.st_size)
    except OSError:
        return None


@functools.lru_cache(maxsize=64)
def _digest_of(path: str, mtime_ns: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


OmegaConf.register_new_resolver("dxc.root", lambda: str(PROJECT_ROOT), replace=True)
OmegaConf.register_new_resolver("dxc.count", len, replace=True)
OmegaConf.register_new_resolver("dxc.numbered", lambda count: [str(i) for i in range(count)], replace=True)
OmegaConf.register_new_resolver("dxc.image_size", image_size, replace=True)
OmegaConf.register_new_resolver("dxc.content_digest", content_digest, replace=True)
OmegaConf.register_new_resolver("dxc.stem_stride", stem_stride, replace=True)
OmegaConf.register_new_resolver(
    "dxc.jitter_m", lambda boxes, size_m: 0.35 * size_m if boxes else 5.0, replace=True
)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers with every interpolation filled in.

    Raises ConfigError for a mandatory value that is missing, or an interpolation of a key that does not exist.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        container = None if missing else OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration cannot be resolved: {error}") from error
    if missing:
        examples = " ".join(f"{key}=..." for key in missing)
        raise ConfigError(f"no value for {', '.join(missing)}; give it on the command line: {examples}")
    return container  # type: ignore[return-value]  # a DictConfig makes a dict
