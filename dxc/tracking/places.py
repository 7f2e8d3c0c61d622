"""Where a store keeps its files. Other addresses are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dxc.errors import TrackingError
from dxc.masking import for_link, masked


class OutsideError(TrackingError):
    """The artifact address of a run lies outside the places of its store."""

    def __init__(self, run_id: str, address: str) -> None:
        super().__init__(
            f"run {run_id}: not read: its artifact address lies outside the store: {masked(address)!r} (if that is "
            "meant: tracking.artifacts=[FOLDER])"
        )


@dataclass(frozen=True)
class Places:
    """Where files of runs may lie. The address in a run is not trusted: anyone who writes to the store can change it.

    For a SQLite file, the places are the folders mlartifacts and mlruns beside it. For a server, they are the addresses
    that it serves itself (mlflow-artifacts:). All other folders and addresses have to be named by the user.
    """

    folders: Sequence[Path]
    addresses: Sequence[str]
    server: str | None
    """host:port of the store if it is a server."""

    @classmethod
    def of(cls, uri: str, more: Sequence[str]) -> Places:
        folders = [Path(each.removeprefix("file://")).resolve() for each in more if _is_path(each)]
        if uri.startswith("sqlite:///"):
            beside = Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve().parent
            folders += [beside / "mlartifacts", beside / "mlruns"]
        served = uri.startswith(("http://", "https://"))
        server = urlsplit(for_link(uri)).netloc if served else None
        return cls(folders, [each.rstrip("/") for each in more if not _is_path(each)], server)

    def of_run(self, run_id: str, address: str) -> Path | str:
        """A run's folder, or its address. Raises OutsideError.

        Args:
            run_id: the run, for messages.
            address: artifact address of the run.
        """
        if _is_path(address):
            path = Path(unquote(urlsplit(address).path) if address.startswith("file:") else address)
            self._require_below(run_id, address, path)
            return path
        bare = address.rstrip("/")
        plain = not {"..", "."} & set(unquote(bare).split("/")) and not set(bare) & set("?#\\")
        scheme, _, rest = bare.partition(":")
        own = scheme == "mlflow-artifacts" and self.server is not None
        if plain and own and (not rest.startswith("//") or rest.split("/")[2] in ("", self.server)):
            return bare
        if plain and any(bare == each or bare.startswith(f"{each}/") for each in self.addresses):
            return bare
        raise OutsideError(run_id, address)

    def file(self, run_id: str, path: Path) -> Path | None:
        """The path of a file. Raises OutsideError if a link leads out of the places.

        Args:
            run_id: the run, for messages.
            path: the file.
        """
        self._require_below(run_id, str(path), path)
        return path if path.is_file() else None

    def _require_below(self, run_id: str, address: str, path: Path) -> None:
        try:
            found = path.resolve() if path.is_absolute() else None
        except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL
            found = None
        if found is None or not any(found.is_relative_to(each.resolve()) for each in self.folders):
            raise OutsideError(run_id, address)


def _is_path(address: str) -> bool:
    """Whether an address means a file here: file:///a/b, file:/a/b or /a/b."""
    return address.startswith(("/", "file:/")) and not re.match(r"file://[^/]", address)
