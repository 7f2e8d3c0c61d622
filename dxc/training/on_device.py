"""All chips on the device that trains: labels, boxes, and the images where they fit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dxc.data.datamodule import Batch

log = logging.getLogger(__name__)

SHARE = 0.5
"""Of the free memory of a device, for images. The rest is for networks and what their layers keep for the gradient."""
AT_ONCE = 512
"""Images that are read and moved at a time."""


class Chips(Protocol):
    """What is needed of chips: dxc.data.cache.ChipCache."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def has_boxes(self) -> bool: ...

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray) -> np.ndarray: ...

    def boxes(self, indices: np.ndarray) -> np.ndarray: ...


class DeviceChips:
    """The chips of one cache on one device. All of them have one size.

    Args:
        cache: the chips.
        device: that trains.
        dtype: of the images. float32; or that of mixed precision, which is what the first convolution would make of
            them anyway. It saves half of the memory and a conversion in each step.
        channels_last: whether the images lie as (H, W, C).
        share: of the free device memory that the images may take. What does not fit stays in the memory of the host.
    """

    def __init__(
        self,
        cache: Chips,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
        share: float = SHARE,
    ) -> None:
        self._cache = cache
        self.device, self.dtype, self.channels_last = device, dtype, channels_last
        self.labels = torch.from_numpy(cache.labels).to(device)
        everything = np.arange(len(cache))
        self.boxes = torch.from_numpy(cache.boxes(everything)).to(device) if cache.has_boxes else None
        self._shape = self._stored(torch.from_numpy(cache.images(everything[:1]))).shape[1:]
        self.images: Tensor | None = None
        """(n, H, W, C) or (n, C, H, W); None where they are streamed from the host."""
        if self.image_bytes <= share * _free_bytes(device):
            self.images = self.empty(len(cache))
            for part in np.array_split(everything, -(-len(cache) // AT_ONCE)):
                self.images[part[0] : part[-1] + 1].copy_(self._read(part))
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # streams that read them begin after this

    @property
    def image_bytes(self) -> int:
        """Bytes of all images on the device."""
        return len(self.labels) * int(np.prod(self._shape)) * self.dtype.itemsize

    def empty(self, count: int, *, pinned: bool = False) -> Tensor:
        """Room for `count` images as they are stored: on the device or, `pinned`, in host memory that it can read."""
        if pinned:
            return torch.empty((count, *self._shape), dtype=self.dtype, pin_memory=self.device.type == "cuda")
        return torch.empty((count, *self._shape), dtype=self.dtype, device=self.device)

    def read(self, index: np.ndarray, out: Tensor) -> None:
        """Read images from the disk cache into host memory.

        Args:
            index: numbers of chips, (n,).
            out: what empty(n, pinned=True) gave.
        """
        out.copy_(self._stored(torch.from_numpy(self._cache.images(index))))

    def gather(self, images: Tensor, rows: Tensor, index: Tensor) -> Batch:
        """A batch as dxc.data.datamodule describes it, without a word to the host.

        Args:
            images: on the device, as they are stored.
            rows: (B,) which of these images.
            index: (B,) the numbers of their chips.
        """
        image = images.index_select(0, rows)
        batch = {
            "image": image.permute(0, 3, 1, 2) if self.channels_last else image,
            "label": self.labels.index_select(0, index),
            "index": index,
        }
        if self.boxes is not None:
            batch["boxes"] = self.boxes.index_select(0, index)
        return batch

    def batch(self, chips: np.ndarray) -> Batch:
        """The batch of these chips, int64 (B,), for validation."""
        index = torch.from_numpy(chips).to(self.device)
        if self.images is not None:
            return self.gather(self.images, index, index)
        return self.gather(self._read(chips), torch.arange(len(chips), device=self.device), index)

    def _read(self, index: np.ndarray) -> Tensor:
        """Images on the device, as they are stored."""
        return self._stored(torch.from_numpy(self._cache.images(index)).to(self.device)).to(self.dtype)

    def _stored(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> as they are stored; a view."""
        return images.permute(0, 2, 3, 1) if self.channels_last else images


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
