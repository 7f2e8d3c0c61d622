"""torch.compile of an exported file, measured in a process of its own that may be stopped.

`python -m dxc.hardware.schedule.compiled model.onnx --mode max-autotune --batches 1 8` prints a JSON line a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dxc.processes import ending_with_parent, kill_group

MODES = {"compiled": "max-autotune-no-cudagraphs", "compiled_graph": "max-autotune"}
"""Modes of torch.compile by name of the row."""


class CompiledTimes(NamedTuple):
    """Rounds in ms by batch and by name of MODES, errors in the same way, and notes on what is missing."""

    ms: dict[int, dict[str, np.ndarray]]
    errors: dict[int, dict[str, float]]
    notes: list[str]


def compiled_times(
    onnx: Path,
    batches: Sequence[int],
    *,
    precision: str,
    device: str,
    seconds: float,
    backend: str = "inductor",
) -> CompiledTimes:
    """Compile a file for each batch size in every mode, and measure it as execution.times_in_turn does.

    Args:
        onnx: the file.
        batches: batch sizes.
        precision: fp32, bf16 or fp16.
        device: cpu or cuda.
        seconds: time limit of all of it. What is done by then is kept.
        backend: of torch.compile.
    """
    found = CompiledTimes({}, {}, [])
    share = seconds / len(MODES)
    for name, mode in MODES.items():
        command = [
            sys.executable, "-m", __spec__.name, str(onnx), "--mode", mode, "--precision", precision,
            "--device", device, "--backend", backend, "--batches", *map(str, batches),
        ]  # fmt: skip
        lines, reason = _run(command, share)
        for line in lines:
            found.ms.setdefault(line["batch"], {})[name] = np.array(line["ms"])
            found.errors.setdefault(line["batch"], {})[name] = (
                math.nan if line["error"] is None else line["error"]
            )
        missing = [str(batch) for batch in batches if name not in found.ms.get(batch, {})]
        if missing:
            found.notes.append(f"torch.compile ({mode}) is missing at batch {', '.join(missing)}: {reason}")
    return found


def _run(command: list[str], seconds: float) -> tuple[list[dict], str]:
    """The lines that a process prints within a time, and why there are not more."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            ending_with_parent(command), stdout=out, stderr=err, start_new_session=True
        )
        try:
            process.wait(timeout=seconds)
            reason = ""
        except subprocess.TimeoutExpired:
            reason = f"it took over {seconds:.0f} s"
        finally:
            kill_group(process)  # its compilers too
            process.wait()
        out.seek(0)
        err.seek(0)
        lines = []
        for line in out.read().decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and {"batch", "ms", "error"} <= answer.keys():
                    lines.append(answer)
        last = [line for line in err.read().decode(errors="replace").splitlines() if line.strip()]
    return lines, reason or (last[-1][:200] if last else "it printed nothing")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dxc.hardware.schedule.compiled")
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--mode", required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    options = parser.parse_args()

    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    from dxc.hardware.schedule.execution import InOrderExecution, elapsed_ms, largest_error, times_in_turn
    from dxc.hardware.schedule.program import InOrder, exact_numbers, load_program

    class Compiled(InOrderExecution):
        def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(each.clone() for each in run(image))

        def ms(self, runs: int) -> float:
            return elapsed_ms(lambda: run(program.image), runs, program.device)

    with exact_numbers(options.precision), torch.no_grad():
        for batch in options.batches:
            program = load_program(
                options.onnx, batch=batch, precision=options.precision, device=options.device
            )
            traced = make_fx(InOrder(program))(program.image)  # one graph, without what only Python reads
            mode = options.mode if options.backend == "inductor" else None
            run = torch.compile(traced, mode=mode, backend=options.backend, dynamic=False)
            one = Compiled(program)
            error = largest_error(program, one)
            times = times_in_turn({"it": one})["it"]
            line = {"batch": batch, "ms": list(times), "error": None if math.isnan(error) else error}
            print(json.dumps(line), flush=True)
            torch._dynamo.reset()


if __name__ == "__main__":
    main()
