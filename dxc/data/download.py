"""A download that goes on where it was interrupted and is refused unless its hash is the published one."""

from __future__ import annotations

import logging
from pathlib import Path

from dxc.download import Resuming, arrived_bytes, partial_of, short_error
from dxc.errors import DataError

TIMEOUT_S = (30, 30)


def fetch(url: str, path: Path, *, sha256: str, progress: bool = True, key: str = "source.root") -> Path:
    """Fetch a file unless it is there. What has arrived of it stays in NAME.partial, and the next call goes on.

    Args:
        url: its address.
        path: of the file.
        sha256: of its content, hexadecimal.
        progress: whether to show a progress bar.
        key: of the configuration, which names the file where there is no network.

    Returns:
        `path`.

    Raises:
        DataError: it cannot be reached, or its content is another.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    partial = partial_of(path)
    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=path.name,
            path=path.parent,
            downloader=Resuming(partial, progress, timeout_s=TIMEOUT_S),
        )
    except (requests.RequestException, OSError) as error:
        kept = (
            "; what has arrived is kept, and the next try goes on from there"
            if arrived_bytes(partial)
            else ""
        )
        raise DataError(
            f"{path.name} cannot be fetched from {url} ({short_error(error)}{kept}). Where there is no network, fetch "
            f"it elsewhere and name it: {key}=FILE"
        ) from error
    except ValueError as error:  # pooch raises it for another hash; it removed the file
        partial.unlink(missing_ok=True)
        raise DataError(
            f"{url} is not the published file: its SHA-256 is not {sha256}. What was fetched is removed. Try again, or "
            f"name a copy: {key}=FILE"
        ) from error
    return path
