"""Downloads that go on where they were interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dxc.masking import masked

CHUNK_BYTES = 1 << 16


def partial_of(path: Path) -> Path:
    """Where a download of this file keeps what has arrived: NAME.partial beside it."""
    return path.with_name(f"{path.name}.partial")


def arrived_bytes(partial: Path) -> int:
    """Bytes that are kept of an interrupted download; 0 where there is none."""
    return partial.stat().st_size if partial.exists() else 0


class Resuming:
    """A downloader for pooch that keeps an interrupted download and resumes it.

    Args:
        partial: holds what has arrived; see partial_of.
        progress: whether to show a progress bar.
        timeout_s: seconds to connect, and between two pieces of data.
    """

    def __init__(self, partial: Path, progress: bool, *, timeout_s: tuple[float, float]) -> None:
        self._partial = partial
        self._progress = progress
        self._timeout_s = timeout_s

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> bool | None:
        import requests
        from tqdm import tqdm

        have = arrived_bytes(self._partial)
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with requests.get(url, headers=headers, stream=True, timeout=self._timeout_s) as response:
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
        if expected is not None and (arrived := arrived_bytes(self._partial)) != expected:
            raise requests.ConnectionError(f"it ended after {arrived} of {expected} bytes")
        shutil.copyfile(self._partial, output_file)
        self._partial.unlink()
        return None


def short_error(error: Exception) -> str:
    """The end of requests' nested messages, which is the useful part, without passwords."""
    text = masked((str(error).splitlines() or [type(error).__name__])[0])
    return text if len(text) < 160 else f"{type(error).__name__}: ...{text[-120:]}"
