"""Finds, fetches, unpacks and reads predictor packages in nn-Meter's layout.

    NAME/fusion_rules.json    which operators the device runs together
    NAME/KERNEL.npz           one predictor (dxc.hardware.predict.forest), converted from KERNEL.pkl if there is one
    NAME/package.json         description of the package (packages of calibrate.py)

A name is looked up in the user's folder, then among the packages that come with dxc. The four packages that nn-Meter
publishes are fetched from its release address.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dxc.download import Resuming, partial_of, short_error
from dxc.errors import FOLDER_NAME, HardwareError
from dxc.files import write_atomically
from dxc.hardware.predict.forest import Forest
from dxc.hardware.predict.kernels import check_rules
from dxc.hardware.predict.pickles import read_forest
from dxc.masking import masked
from dxc.untrusted import load_json

log = logging.getLogger(__name__)

PUBLISHED = (
    "cortexA76cpu_tflite21",
    "adreno640gpu_tflite21",
    "adreno630gpu_tflite21",
    "myriadvpu_openvino2019r2",
)
RELEASE_URL = "https://github.com/microsoft/nn-Meter/releases/download/v1.0-data"
HASHES = "hashes.json"
SHIPPED = Path(__file__).parents[1] / "shipped"
MAX_UNPACKED_BYTES = 4_000_000_000
MAX_ENTRIES = 1_000
TIMEOUT_S = (10, 60)  # to connect; between two pieces of data


class UnreachableError(HardwareError):
    """The address of published packages does not answer."""


@dataclass(frozen=True)
class Package:
    """Predictors of one device: regressors by kernel name, such as 'conv-bn-relu'; `about` is its package.json."""

    name: str
    folder: Path
    rules: Path
    regressors: Mapping[str, Forest]
    about: dict[str, Any]


def load_package(folder: Path) -> Package:
    """Read a package's folder. Pickles are converted once into .npz files beside them, and are never executed.

    Raises HardwareError if the folder is no package, or holds a damaged or foreign file; it names the file.
    """
    rules = folder / "fusion_rules.json"
    if not rules.is_file():
        raise HardwareError(
            f"{folder} is not a predictor package: it has no fusion_rules.json. A package is a folder with that file "
            "and one KERNEL.pkl or KERNEL.npz for each kernel, as published by nn-Meter"
        )
    check_rules(rules)
    regressors = {}
    for path in sorted(folder.glob("*.pkl")):
        arrays = path.with_suffix(".npz")
        if arrays.exists() and arrays.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            continue
        regressors[path.stem] = read_forest(path)
        with contextlib.suppress(OSError):  # in a read-only folder the pickle is read again each time
            regressors[path.stem].save(arrays)
    for path in sorted(folder.glob("*.npz")):
        if path.stem not in regressors:
            regressors[path.stem] = Forest.load(path)
    if not regressors:
        raise HardwareError(f"{folder} holds no predictor: no KERNEL.pkl and no KERNEL.npz")
    return Package(folder.name, folder, rules, regressors, _about(folder / "package.json"))


def find_package(
    name: str,
    *,
    packages_dir: Path,
    packages_url: str = RELEASE_URL,
    progress: bool = True,
    shipped: Path = SHIPPED,
) -> Package:
    """Find a package by its name. A published one is fetched on first use; an interrupted download is resumed.

    Args:
        name: of the package.
        packages_dir: the user's folder of packages.
        packages_url: where published packages are fetched from.
        progress: whether to show a progress bar.
        shipped: the folder of packages that come with dxc.

    Raises:
        HardwareError: the name is unknown (the message lists those that exist), the package cannot be fetched (it gives
            the address and the folder to put the package into), or it cannot be read.
    """
    check_name(name, packages_dir, shipped)
    folder = packages_dir / name
    if folder.is_dir():
        return load_package(folder)
    if (shipped / name).is_dir():
        return load_package(shipped / name)
    from filelock import FileLock

    try:
        packages_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(packages_dir / ".lock"):
            if not folder.is_dir():  # another process may have been faster
                archive = packages_dir / f"{name}.zip"
                fetched = not archive.is_file()
                if fetched:
                    _fetch(f"{packages_url.rstrip('/')}/{name}.zip", archive, progress)
                unpack(archive, packages_dir, name)
                # only after unpacking: the hash of a log-in page that came instead must not be recorded
                if fetched:
                    _record(archive)
    except OSError as error:
        raise HardwareError(
            f"{name} cannot be put into {packages_dir}: {error}. Make room or choose a writable folder: "
            "hardware.packages_dir=DIR"
        ) from error
    return load_package(folder)


def check_name(name: str, packages_dir: Path, shipped: Path = SHIPPED) -> None:
    """Raise HardwareError unless a package with this name is here or published. Nothing is fetched.

    Args:
        name: of the package.
        packages_dir: the user's folder of packages.
        shipped: the folder of packages that come with dxc.
    """
    here = available(packages_dir, shipped)
    if FOLDER_NAME.fullmatch(str(name)) and (name in here or name in PUBLISHED):
        return
    raise HardwareError(
        f"hardware.predictors: there is no package '{name}'. Here: {', '.join(here) or 'none'} (in {packages_dir} and "
        f"with dxc); published, fetched on first use: {', '.join(PUBLISHED)}. python calibrate.py name=NAME makes one"
    )


def available(packages_dir: Path, shipped: Path = SHIPPED) -> list[str]:
    """Names of the packages that are here: folders and unpacked archives."""
    folders = [
        path.parent.name for root in (packages_dir, shipped) for path in root.glob("*/fusion_rules.json")
    ]
    return sorted({*folders, *(path.stem for path in packages_dir.glob("*.zip"))} - {""})


def unpack(archive: Path, packages_dir: Path, name: str) -> None:
    """Unpack NAME.zip to packages_dir/NAME. If an entry would leave that folder, nothing is unpacked.

    Args:
        archive: NAME.zip.
        packages_dir: the folder of packages.
        name: of the package.

    Raises:
        HardwareError: the archive is damaged, too large, unsafe or no predictor package.
    """
    with tempfile.TemporaryDirectory(dir=packages_dir, prefix=f".{name}.") as place:
        whole = Path(place) / "whole"
        try:
            with zipfile.ZipFile(archive) as opened:
                entries = opened.infolist()
                for entry in entries:
                    _check_entry(entry, archive)
                if (
                    sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES
                    or len(entries) > MAX_ENTRIES
                ):
                    raise HardwareError(
                        f"{archive} unpacks to over {MAX_UNPACKED_BYTES / 1e9:g} GB or {MAX_ENTRIES} files, too many "
                        "for a predictor package; nothing was unpacked"
                    )
                opened.extractall(whole)  # checks each file's length and CRC
        except HardwareError:
            raise
        except Exception as error:  # zipfile, zlib and lzma have different errors for a damaged file
            raise HardwareError(
                f"{archive} cannot be unpacked: {error}. Is there room? If it is damaged, remove it; then it is "
                "fetched again"
            ) from error
        source = whole / name if (whole / name).is_dir() else whole  # with or without a folder of its own
        if not (source / "fusion_rules.json").is_file():
            raise HardwareError(
                f"{archive} is not a predictor package: there is no {name}/fusion_rules.json in it"
            )
        source.rename(packages_dir / name)


def _check_entry(entry: zipfile.ZipInfo, archive: Path) -> None:
    name = entry.orig_filename
    leaves = (
        PurePosixPath(name).is_absolute()
        or PureWindowsPath(name).drive
        or "\\" in name
        or "\0" in name
        or ".." in PurePosixPath(name).parts
    )
    if leaves or stat.S_ISLNK(entry.external_attr >> 16):
        raise HardwareError(
            f"{archive}: the entry {name!r} leaves the package's folder; nothing was unpacked. Do not use this file"
        )


def _fetch(url: str, archive: Path, progress: bool) -> None:
    """Download to `archive`. hashes.json records the hash of the first copy, and later copies must have the same."""
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    partial = partial_of(archive)
    known = _known_hashes(archive.parent)
    try:
        pooch.retrieve(
            url,
            known_hash=known.get(archive.name),
            fname=archive.name,
            path=archive.parent,
            downloader=Resuming(partial, progress, timeout_s=TIMEOUT_S),
        )
    except requests.RequestException as error:
        kept = (
            "; the part that has arrived is kept, and the next try goes on from there"
            if partial.exists()
            else ""
        )
        raise UnreachableError(
            f"{archive.stem} cannot be fetched from {masked(url)} ({short_error(error)}{kept}). Fetch it where there "
            f"is a network and put {archive.name} (or its folder) into {archive.parent}, or name a folder: "
            "hardware.packages_dir=DIR"
        ) from error
    except ValueError as error:  # pooch raises it for a hash that differs
        partial.unlink(missing_ok=True)
        raise HardwareError(
            f"{masked(url)} has changed since it was first fetched (SHA-256 in {archive.parent / HASHES}): "
            f"{short_error(error)}. If that is intended, remove its line there"
        ) from error


def _known_hashes(packages_dir: Path) -> dict[str, str]:
    """SHA-256 of the first copy of each archive, by the name of the file."""
    record = packages_dir / HASHES
    if not record.is_file():
        return {}
    try:
        known = load_json(record)
        if not isinstance(known, dict) or not all(isinstance(each, str) for each in known.values()):
            raise ValueError("it must be a JSON object of strings")
        return known
    except ValueError as error:
        raise HardwareError(
            f"{record} is damaged: {error}. Mend or remove it; without it the next copy counts as the first"
        ) from error


def _record(archive: Path) -> None:
    known = _known_hashes(archive.parent)
    known[archive.name] = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    write_atomically(archive.parent / HASHES, json.dumps(known, indent=1) + "\n")


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        about = load_json(path)
        needed = ("target", "device", "runtime", "runtime_version", "threads")
        if not isinstance(about, dict) or any(key not in about for key in needed):
            raise ValueError(f"it has to have {', '.join(needed)}")
        return about
    except (OSError, ValueError) as error:
        raise HardwareError(
            f"{path} does not describe a calibrated package: {error}. Calibrate or copy it again"
        ) from error
