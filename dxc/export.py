"""Trained module -> one .onnx file, its size, and proof that it computes the same."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from dxc.errors import ExportError

OPSET = 17
MAX_RELATIVE_ERROR = 1e-4
CHECK_CHIPS = 4


class Exported(NamedTuple):
    """One exported network. onnx_mb counts 1e6 bytes of the file, weights inside."""

    path: Path
    onnx_mb: float
    max_relative_error: float


def export_onnx(model: nn.Module, path: Path, *, in_channels: int, size: int, check: bool = True) -> Exported:
    """Write `model` as a self-contained ONNX file with input `image` (batch, in_channels, size, size) and
    output `scores` (batch, classes); the batch is dynamic. The model is left in eval mode on the CPU.

    With `check`, the file passes onnx.checker and ONNX Runtime agrees with torch on random chips; raises
    ExportError where it does not. The file appears at `path` only when it is complete.
    """
    import onnx

    model = model.cpu().eval()
    example = torch.rand(1, in_channels, size, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with warnings.catch_warnings():
            # dynamo=False on purpose: the newer exporter writes the weights to a second file and 46 kB of
            # debug metadata, and nn-Meter reads the graphs of this one.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (example,),
                str(partial),
                dynamo=False,
                opset_version=OPSET,
                do_constant_folding=True,
                input_names=["image"],
                output_names=["scores"],
                dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
            )
        graph = onnx.load(partial)
        for node in graph.graph.node:
            node.doc_string = ""  # source lines of this machine
        onnx.save(graph, partial)
        if check:
            onnx.checker.check_model(onnx.load(partial), full_check=True)
        error = _max_relative_error(model, partial, in_channels, size) if check else float("nan")
        if check and math.isnan(error):
            raise ExportError(
                "the trained network answers with what is not a number: its training went astray; lower "
                "optimizer.lr, or use full precision (trainer.precision=32-true)"
            )
        if check and not error <= MAX_RELATIVE_ERROR:
            raise ExportError(
                f"the exported network differs from the trained one: relative error {error:.1e} on random "
                f"chips, allowed {MAX_RELATIVE_ERROR:.0e}; is a layer different in eval mode?"
            )
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path, path.stat().st_size / 1e6, error)


def _max_relative_error(model: nn.Module, path: Path, in_channels: int, size: int) -> float:
    """Largest difference between ONNX Runtime and torch, relative to the largest score."""
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    chips = torch.rand(CHECK_CHIPS, in_channels, size, size, generator=generator)
    with torch.inference_mode():
        expected = model(chips).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"image": chips.numpy()})
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def count_params(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, *, in_channels: int, size: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image of in_channels x size x size."""
    from torch.utils.flop_counter import FlopCounterMode

    model = model.cpu().eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, in_channels, size, size))
    return counter.get_total_flops() // 2
