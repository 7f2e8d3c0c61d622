"""The exported file of the chosen design: where it lies, what its outputs are, and a copy of it."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from dxc.deploy.metadata import OUTPUTS, read_metadata
from dxc.errors import AnalysisError, ConfigError, ExportError, HardwareError
from dxc.hardware.onnx_file import load_onnx
from dxc.masking import masked
from dxc.tracking.places import OutsideError
from dxc.tracking.reader import Reader

NETWORK = "model.onnx"


class NetworkFile(NamedTuple):
    """where: the file's path, or how it is had. outputs: what the network answers. Each is '' where it is not known."""

    where: str = ""
    outputs: str = ""


def check_export(path: str | None) -> None:
    """Check choose.export before anything is read. Raises ConfigError where the file cannot be new."""
    if path is None:
        return
    if not isinstance(path, str) or not path:
        raise ConfigError(f"choose.export must be the name of a file, not {path!r}")
    target = Path(path)
    if target.is_dir():
        raise ConfigError(f"choose.export={path} is a folder; name a file in it: {target / NETWORK}")
    if target.exists() or target.is_symlink():
        raise ConfigError(
            f"choose.export={path} exists already and is not overwritten; remove it or name another"
        )


def chosen_file(reader: Reader, run_id: str, *, export: str | None = None, rebuild: str = "") -> NetworkFile:
    """Find the exported file of a run, and copy it if asked for.

    A file on a server is fetched only to be copied.

    Args:
        reader: of the store.
        run_id: the run of the chosen design.
        export: path of the copy, see check_export; None makes none.
        rebuild: the command that trains the design again, for the error message.

    Raises:
        AnalysisError: there is no file to copy, or the copy cannot be written.
        OutsideError: the file is asked for, and its address does not belong to the store.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            local = reader.keeps_locally(run_id)
            path = reader.artifact(run_id, NETWORK, Path(folder)) if local or export else None
        except OutsideError as error:
            if export:
                raise
            return NetworkFile(f"not known: {error}")
        if export is None and not local:
            return NetworkFile(
                f"{NETWORK} of run {run_id} in {masked(reader.uri)}; choose.export=FILE copies it"
            )
        if path is None and export is None:
            return NetworkFile(f"not known: run {run_id} has no {NETWORK} any more")
        if path is None:
            again = f"; train it again:\n{rebuild}" if rebuild else ""
            raise AnalysisError(f"choose.export: run {run_id} has no {NETWORK} any more{again}")
        if export is None:
            return NetworkFile(_shown(path), outputs_of(path))
        try:
            _copy(path, Path(export))
        except OSError as error:
            raise AnalysisError(
                f"choose.export={export} cannot be written: {error.strerror or error}"
            ) from error
        return NetworkFile(
            f"{export} (a copy of {_shown(path) if local else f'the file of run {run_id}'})", outputs_of(path)
        )


def outputs_of(path: Path) -> str:
    """What an exported network answers, in one line, as its file says: names, shapes, logits or probabilities."""
    try:
        model = load_onnx(path)
    except HardwareError as error:
        return f"not known: {error}"
    try:
        metadata = read_metadata(model, path.name)
    except ExportError:
        names = ", ".join(each.name for each in model.graph.output)
        return f"{names}: the file does not say what they mean"
    meaning = "; ".join(f"{name} {OUTPUTS[name]}" for name in metadata.outputs)
    return f"{meaning}; classes: {', '.join(metadata.classes)}"


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that it is there whole or not at all. Raises OSError, also where there is such a file by now."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        draft = shutil.copyfile(source, Path(folder) / NETWORK)
        if target.exists():
            raise FileExistsError(errno.EEXIST, "it exists by now")
        draft.rename(target)


def _shown(path: Path) -> str:
    """Relative to the current folder where it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
