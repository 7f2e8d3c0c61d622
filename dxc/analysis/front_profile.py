"""What goes on inside the front's networks: their exported files profiled on this machine, one after the other.

Third stage of hardware-aware design: few are chosen by figures that are cheap, these few are looked at closely. The
profiler is dxc.hardware.profiling.torch_profile, the memory dxc.hardware.measure.latency's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dxc.errors import DxcError, require_one_of
from dxc.files import write_atomically
from dxc.hardware.spec import Hardware, device_name
from dxc.tracking.reader import Reader
from dxc.untrusted import below, load_json

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

MODES = ("none", "torch", "nsight")
SOURCES = ("onnxruntime", "nsight", "torch")
"""Of the profiler's tables, the first that is there: what deploys the file before what trained it."""
ABOUT = "about.json"


class FrontProfile(NamedTuple):
    """summary: one row a network and batch: name, trial (run_id where there is none; names may be shared, this not),
    source, batch, ms (of one execution), ms_per_image, the shares
    of operator time conv, matmul, pooling and other, memory_ms (copies and changes of layout), peak_memory_mb (batch 1,
    NaN where it was not measured). notes: what could not be had. device: where it was profiled."""

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
    """Profile the exported file of each member; traces and tables go to FOLDER/TRIAL, and are not made twice.

    front: designs with name, trial and run_id. mode: torch | nsight (where that fails, torch, and a note says why).
    hardware: this machine, as the analyst says, who trusts no run about it. artifacts: see Reader.
    Raises ConfigError for another mode. A member that cannot be profiled has a note and no row.
    """
    import pandas as pd
    from tqdm import tqdm

    require_one_of("profile", mode, MODES)
    reader = Reader(uri, artifacts=artifacts)
    parts, notes, devices = [], [], set()
    for member in tqdm(
        front.to_dict("records"),
        desc="profiling the front",
        unit="network",
        disable=None if progress else True,
    ):
        try:
            table, about = _member(reader, member, below(folder, _key(member)), mode, hardware)
        except DxcError as error:
            notes.append(f"not profiled: {member['name']}: {error}")
            continue
        except OSError:  # the folder cannot be written
            raise
        except Exception as error:  # a file that is no network, or one that a library cannot run
            log.debug("%s cannot be profiled", member["name"], exc_info=True)
            reason = (str(error).strip().splitlines() or [""])[0]
            notes.append(f"not profiled: {member['name']}: {type(error).__name__}: {reason}")
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
    """What tells a member from the others; two designs may share a name."""
    return str(member["trial"] or member["run_id"])


def _member(
    reader: Reader, member: Mapping[Any, Any], folder: Path, mode: str, hardware: Hardware
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(the profiler's table, what is known beside it), from the folder where the same file was profiled before."""
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
            "device": f"{device_name(accelerator)}, {hardware.threads} thread{'s' * (hardware.threads != 1)}",
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
    """Of a fresh process on the hardware's device, or why not."""
    from dxc.hardware.costs import measure_on

    hardware = replace(hardware, measure=True)  # a search leaves it off
    if reason := hardware.absent():
        return None, f"peak memory was not measured: {reason}"
    return measure_on(onnx, hardware).peak_memory_mb, ""


def _summary(table: pd.DataFrame, member: Mapping[Any, Any], about: Mapping[str, Any]) -> pd.DataFrame:
    """One row a batch; see FrontProfile."""
    import pandas as pd

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
                **{kind: float(shares.get(kind, 0)) for kind in ("conv", "matmul", "pooling", "other")},
                "memory_ms": float(part.loc[part["table"] == "memory", "ms"].sum()),
            }
        )
    names = ("source", "batch", "ms", "ms_per_image", "conv", "matmul", "pooling", "other", "memory_ms")
    frame = pd.DataFrame(rows, columns=list(names))
    peak = about["peak_memory_mb"]
    return frame.assign(peak_memory_mb=float("nan") if peak is None else peak).assign(
        name=member["name"], trial=_key(member)
    )[["name", "trial", *names, "peak_memory_mb"]]
