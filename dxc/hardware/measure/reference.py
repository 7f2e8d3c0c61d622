"""What ONNX Runtime answers on the CPU: another runtime has to give the same before it is timed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dxc.hardware.measure import worker
from dxc.hardware.measure.ort import session

IMAGES = 4
"""Images of a batch that are compared. dxc.hardware.measure.batches compares a batch with its images one by one."""


@contextlib.contextmanager
def reference(onnx: Path, batch: int, threads: int) -> Iterator[dict[str, Any]]:
    """Write random inputs of a batch and the outputs of the first IMAGES into a file (.npz), and name it in a request.

    A file with a fixed batch answers for its whole batch.

    Args:
        onnx: the file.
        batch: images in one execution.
        threads: number of CPU threads.

    Yields:
        reference: path of the arrays input0, input1, ... and output0, ...; inputs and outputs: their numbers.

    Raises:
        Refused: ONNX Runtime cannot run the file, or its inputs are not images of one size.
    """
    try:
        runner = session(str(onnx), threads)
    except Exception as error:  # the error classes of onnxruntime differ between versions
        raise worker.Refused("model", str(error)) from error
    fed = runner.get_inputs()
    try:
        feeds = {each.name: worker.random_input(np, each, batch) for each in fed}
        fixed = any(each.shape and isinstance(each.shape[0], int) for each in fed)
        some = feeds if fixed else {name: array[:IMAGES] for name, array in feeds.items()}
        answers = runner.run(None, some)
    except worker.Refused:
        raise
    except Exception as error:
        raise worker.Refused("run", f"{type(error).__name__}: {error}") from error
    arrays = {f"input{place}": array for place, array in enumerate(feeds.values())}
    arrays |= {f"output{place}": array for place, array in enumerate(answers)}
    with tempfile.TemporaryDirectory(prefix="dxc-") as folder:
        path = Path(folder) / "reference.npz"
        np.savez(path, **arrays)
        yield {"reference": str(path), "inputs": len(feeds), "outputs": len(answers)}
