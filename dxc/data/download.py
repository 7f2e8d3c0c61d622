"""A download that goes on where it was interrupted and is refused unless its hash is the published one."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from dxc.errors import DataError

TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20


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
    partial = path.with_name(f"{path.name}.partial")
    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=path.name,
            path=path.parent,
            downloader=_Resuming(partial, progress),
        )
    except (requests.RequestException, OSError) as error:
        kept = "; what has arrived is kept, and the next try goes on from there" if _size(partial) else ""
        raise DataError(
            f"{path.name} cannot be fetched from {url} ({_short(error)}{kept}). Where there is no network, fetch it "
            f"elsewhere and name it: {key}=FILE"
        ) from error
    except ValueError as error:  # pooch raises it for another hash; it removed the file
        partial.unlink(missing_ok=True)
        raise DataError(
            f"{url} is not the published file: its SHA-256 is not {sha256}. What was fetched is removed. Try again, or "
            f"name a copy: {key}=FILE"
        ) from error
    return path


class _Resuming:
    """A downloader for pooch that keeps an interrupted download and resumes it."""

    def __init__(self, partial: Path, progress: bool) -> None:
        self._partial = partial
        self._progress = progress

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> bool | None:
        import requests
        from tqdm import tqdm

        have = _size(self._partial)
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            resumed = response.status_code == 206
            said = response.headers.get("Content-Range", "")
            elsewhere = resumed and said and not said.startswith(f"bytes {have}-")
            # the kept part was complete, or belongs to another file: begin again
            if have and (response.status_code == 416 or elsewhere):
                self._partial.unlink(missing_ok=True)
                return self(url, output_file, pooch)
            response.raise_for_status()
            have = have if resumed else 0
            length = response.headers.get("Content-Length", "")
            expected = have + int(length) if length.isdigit() else None
            with (
                self._partial.open("ab" if resumed else "wb") as file,
                tqdm(
                    total=expected, initial=have, unit="B", unit_scale=True, desc=self._partial.stem,
                    disable=not self._progress,
                ) as bar,
            ):  # fmt: skip
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    bar.update(len(chunk))
        if expected is not None and (arrived := _size(self._partial)) != expected:
            raise requests.ConnectionError(f"it ended after {arrived} of {expected} bytes")
        shutil.copyfile(self._partial, output_file)
        self._partial.unlink()
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _short(error: Exception) -> str:
    """The end of requests' nested messages, which is the useful part."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text if len(text) < 160 else f"{type(error).__name__}: ...{text[-120:]}"
