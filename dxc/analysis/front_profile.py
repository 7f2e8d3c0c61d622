"""Profiles the exported networks of the front on this machine, one after the other.

This is the third stage of hardware-aware design: cheap figures select a few designs, and these are profiled. The
profiler is dxc.hardware.profiling.torch_profile; memory is measured by dxc.hardware.measure.latency.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from dxc.analysis.questions import FrontProfiler
from dxc.bars import each
from dxc.config.hardware import Hardware
from dxc.errors import DxcError, first_line, require_one_of
from dxc.files import write_atomically
from dxc.hardware.spec import absent, device_name
from dxc.text import counted
from dxc.tracking.reader import Reader
from dxc.untrusted import below, load_json

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SOURCES = ("onnxruntime", "nsight", "torch")
"""Sources of the profile in order of preference: the runtime of the deployed file before the training framework."""
ABOUT = "about.json"


class FrontProfile(NamedTuple):
    """Profiles of the front.

    Attributes:
        summary: one row per network and batch size: name, trial (or run_id, unique where names are not), source, batch,
            ms (one execution), ms_per_image, the shares of operator time conv, matmul, pooling and other, memory_ms
            (copies and changes of layout), peak_memory_mb (batch 1, NaN where it was not measured).
        notes: what could not be profiled or measured, and why.
        device: where it was profiled.
    """

    summary: pd.DataFrame
    notes: list[str]
    device: str


def profile_front(
    front: pd.DataFrame,
    uri: str,
    folder: Path,
    *,
    mode: str,
    hardware: Hardware,
    artifacts: Sequence[str] = (),
    progress: bool = True,
) -> FrontProfile:
    """Profile the exported file of each member of the front.

    Traces and tables go to FOLDER/TRIAL; existing ones are reused. A member that cannot be profiled gets a note and no
    row.

    Args:
        front: designs with name, trial and run_id.
        uri: address of the MLflow store.
        folder: where traces and tables go.
        mode: torch | nsight. Where nsight fails, torch is used and a note says why.
        hardware: this machine, as the command describes it. What runs say is not used.
        artifacts: see Reader.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: an unknown mode.

    """
    import pandas as pd

    require_one_of("profile", mode, get_args(FrontProfiler))
    reader = Reader(uri, artifacts=artifacts)
    parts, notes, devices = [], [], set()
    for member in each(front.to_dict("records"), "profiling the front", "network", shown=progress):
        try:
            table, about = _member(reader, member, below(folder, _key(member)), mode, hardware)
        except DxcError as error:
            notes.append(f"not profiled: {member['name']}: {error}")
            continue
        except OSError:  # the folder cannot be written
            raise
        except Exception as error:  # a file that is no network, or one that a library cannot run
            log.debug("%s cannot be profiled", member["name"], exc_info=True)
            notes.append(f"not profiled: {member['name']}: {first_line(error, named=True)}")
            continue
        parts.append(_summary(table, member, about))
        notes += [note for note in about["notes"] if note not in notes]
        devices.add(about["device"])
    columns = list(
        _summary(
            pd.DataFrame(columns=["source"]),
            {"name": "", "trial": "", "run_id": ""},
            {"peak_memory_mb": None},
        )
    )
    summary = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return FrontProfile(summary, notes, ", ".join(sorted(devices)))


def _key(member: Mapping[Any, Any]) -> str:
    """The unique key of a member. Two designs may share a name."""
    return str(member["trial"] or member["run_id"])


def _member(
    reader: Reader, member: Mapping[Any, Any], folder: Path, mode: str, hardware: Hardware
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The profiler's table and what is known besides. It is read from the folder if the same file was profiled
    before."""
    import pandas as pd
    import torch

    from dxc.hardware.profiling.torch_profile import profile_network

    with tempfile.TemporaryDirectory() as temporary:
        onnx = reader.artifact(member["run_id"], "model.onnx", Path(temporary))
        if onnx is None:
            raise DxcError(f"run {member['run_id']} has no model.onnx any more")
        accelerator = "gpu" if hardware.provider == "cuda" and torch.cuda.is_available() else "cpu"
        key = {
            "file": hashlib.sha256(onnx.read_bytes()).hexdigest(),
            "mode": mode,
            "device": f"{device_name(accelerator)}, {counted(hardware.threads, 'thread')}",
        }
        try:
            about = load_json(folder / ABOUT)
            if all(about[name] == value for name, value in key.items()):
                return pd.read_parquet(folder / "profile.parquet"), about
        except (OSError, ValueError, KeyError, TypeError):
            pass
        shutil.rmtree(folder, ignore_errors=True)  # another file's, or of a call that was killed
        profiled = profile_network(onnx, folder, mode=mode, accelerator=accelerator, threads=hardware.threads)
        peak_mb, reason = _peak_memory_mb(onnx, hardware)
        about = {
            **key,
            "peak_memory_mb": peak_mb,
            "notes": [note for note in (profiled.note, reason) if note],
        }
        write_atomically(folder / ABOUT, json.dumps(about, indent=1))  # last: it says that all is there
        return profiled.table, about


def _peak_memory_mb(onnx: Path, hardware: Hardware) -> tuple[float | None, str]:
    """Peak memory of a fresh process on the device of `hardware`, or the reason why it was not measured."""
    from dxc.hardware.costs import measure_on

    hardware = hardware.model_copy(update={"measure": True})  # a search leaves it off
    if reason := absent(hardware):
        return None, f"peak memory was not measured: {reason}"
    return measure_on(onnx, hardware).peak_memory_mb, ""


def _summary(table: pd.DataFrame, member: Mapping[Any, Any], about: Mapping[str, Any]) -> pd.DataFrame:
    """One row per batch size; see FrontProfile."""
    import pandas as pd

    from dxc.hardware.profiling.tables import USUAL

    source = next((each for each in SOURCES if (table["source"] == each).any()), None)
    rows = []
    for batch, part in table[table["source"] == source].groupby("batch") if source else ():
        shares = part[part["table"] == "operators"].set_index("name")["share"]
        ms = float(part.loc[part["table"] == "latency", "ms"].sum())
        rows.append(
            {
                "source": source,
                "batch": int(batch),
                "ms": ms,
                "ms_per_image": ms / int(batch),
                **{kind: float(shares.get(kind, 0)) for kind in USUAL},
                "other": float(shares.drop(list(USUAL), errors="ignore").sum()),
                "memory_ms": float(part.loc[part["table"] == "memory", "ms"].sum()),
            }
        )
    names = ("source", "batch", "ms", "ms_per_image", "conv", "matmul", "pooling", "other", "memory_ms")
    frame = pd.DataFrame(rows, columns=list(names))
    peak = about["peak_memory_mb"]
    return frame.assign(peak_memory_mb=float("nan") if peak is None else peak).assign(
        name=member["name"], trial=_key(member)
    )[["name", "trial", *names, "peak_memory_mb"]]
