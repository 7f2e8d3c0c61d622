"""Trained module -> one .onnx file, its size, and proof that it computes the same."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from dxc.deploy.metadata import ANY, Metadata
from dxc.errors import ExportError
from dxc.models.registry import output_names

OPSET = 17
MAX_RELATIVE_ERROR = 1e-4
CHECK_CHIPS = 4
LEAST_SCALE = 0.01
"""What an output's error is relative to at least:
logits of 0.002, of a network that has hardly learnt, are as good as 0."""

ANY_SIZES = ((16, 16), (37, 53), (100, 100), (128, 96))
"""Heights and widths at which a file of dynamic size is checked."""
EXAMPLE_SIZE = (60, 76)
"""Traced for it: a size that is checked as well would hide a number that the trace took for a constant."""


class Exported(NamedTuple):
    """One exported network. onnx_mb counts 1e6 bytes of the file, weights inside."""

    path: Path
    onnx_mb: float
    max_relative_error: float


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    in_channels: int,
    size: int | tuple[int, int],
    metadata: Metadata | None = None,
    check: bool = True,
) -> Exported:
    """Write `model` as a self-contained ONNX file with input `image` (batch, in_channels, height, width) and the
    outputs that dxc.models.registry.output_names says, such as `scores` (batch, classes); the batch is dynamic.

    The model is left in eval mode on the CPU. The file appears at `path` only when it is complete.

    Args:
        size: of the image in pixels, one number or (height, width).
        metadata: what the file says about itself; its size and outputs are filled in here. None: it says nothing, and
            dxc.deploy.predictor.Predictor refuses it.
        check: whether the file has to pass onnx.checker, and ONNX Runtime to agree with torch on random chips, output
            by output.

    Raises:
        ExportError: the file does not pass the check, or has other channels or classes than its metadata names.
    """
    image = _height_and_width(size)
    if metadata is not None:
        metadata = metadata.model_copy(update={"size": image})
    return _export(model, path, in_channels, image, [image] if check else [], {0: "batch"}, metadata)


def export_any_size(
    model: nn.Module, path: Path, *, in_channels: int, metadata: Metadata | None = None
) -> Exported:
    """As export_onnx, with an image whose height and width are dynamic too; checked at ANY_SIZES.

    Modules with an attribute `any_size`, such as dxc.models.sppnet.SpatialPyramid, are told to compute with the size
    of each image. What such a file costs depends on the image: predict and measure one of a fixed size. Raises
    ExportError for a network that ties the file to one size.
    """
    switched = [module for module in model.modules() if getattr(module, "any_size", None) is False]
    for module in switched:
        module.any_size = True  # type: ignore[assignment]  # torch types attributes as tensors or modules
    if metadata is not None:
        metadata = metadata.model_copy(update={"size": ANY})
    dynamic = {0: "batch", 2: "height", 3: "width"}
    try:
        return _export(model, path, in_channels, EXAMPLE_SIZE, ANY_SIZES, dynamic, metadata)
    except ExportError:
        raise
    except Exception as error:  # torch's exporter, ONNX Runtime and the network itself raise what they like
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"{type(model).__name__} cannot be exported for images of any size: {reason}. Export a file for each size "
            "that is needed: export_onnx(..., size=(height, width))"
        ) from error
    finally:
        for module in switched:
            module.any_size = False  # type: ignore[assignment]


def _export(
    model: nn.Module,
    path: Path,
    in_channels: int,
    example: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    dynamic: dict[int, str],
    metadata: Metadata | None,
) -> Exported:
    """Trace `model` with an image of the size `example`, write the file, and check it with images of `sizes`."""
    import onnx

    model = model.cpu().eval()
    outputs = list(output_names(model))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with warnings.catch_warnings():
            # dynamo=False on purpose: the newer exporter writes the weights to a second file and 46 kB of
            # debug metadata, and nn-Meter reads the graphs of this one.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.rand(1, in_channels, *example),),
                str(partial),
                dynamo=False,
                opset_version=OPSET,
                do_constant_folding=True,
                input_names=["image"],
                output_names=outputs,
                dynamic_axes={"image": dynamic, **{name: {0: "batch"} for name in outputs}},
            )
        graph = onnx.load(partial)
        for node in graph.graph.node:
            node.doc_string = ""  # source lines of this machine
        if metadata is not None:
            metadata = metadata.model_copy(update={"outputs": tuple(outputs)})
            metadata.check_fits(graph, path)
            metadata.write_to(graph)
        onnx.save(graph, partial)
        if sizes:
            onnx.checker.check_model(onnx.load(partial), full_check=True)
        errors = [_checked_error(model, partial, outputs, in_channels, size) for size in sizes]
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path, path.stat().st_size / 1e6, max(errors, default=float("nan")))


def _checked_error(
    model: nn.Module, path: Path, outputs: Sequence[str], in_channels: int, size: tuple[int, int]
) -> float:
    """_max_relative_error, if it is allowed; raises ExportError where it is not."""
    error = _max_relative_error(model, path, outputs, in_channels, size)
    if math.isnan(error):
        raise ExportError(
            "the trained network answers with what is not a number: its training went astray; lower "
            "optimizer.lr, or use full precision (trainer.precision=32-true)"
        )
    if not error <= MAX_RELATIVE_ERROR:
        raise ExportError(
            f"the exported network differs from the trained one: relative error {error:.1e} on random chips of "
            f"{size[0]} x {size[1]} pixels, allowed {MAX_RELATIVE_ERROR:.0e}; is a layer different in eval mode?"
        )
    return error


def _max_relative_error(
    model: nn.Module, path: Path, outputs: Sequence[str], in_channels: int, size: tuple[int, int]
) -> float:
    """Largest difference between ONNX Runtime and torch, relative to the largest value of the same output; nan where
    a value is."""
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    chips = torch.rand(CHECK_CHIPS, in_channels, *size, generator=generator)
    # from dark to bright: a logit may be close to 0 for one of them, where rounding looks large, but not for all
    chips *= torch.linspace(1 / CHECK_CHIPS, 1, CHECK_CHIPS)[:, None, None, None]
    with torch.inference_mode():
        answer = model(chips)
    expected = answer if isinstance(answer, tuple) else (answer,)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    actual = session.run(list(outputs), {"image": chips.numpy()})
    errors = [
        np.abs(ours - theirs.numpy()).max() / max(theirs.abs().max().item(), LEAST_SCALE)
        for ours, theirs in zip(actual, expected, strict=True)
    ]
    return float(np.max(errors))  # unlike max(), it keeps a nan


def _height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def count_params(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, *, in_channels: int, size: int | tuple[int, int]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image; size: one number or (height, width)."""
    from torch.utils.flop_counter import FlopCounterMode

    model = model.cpu().eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, in_channels, *_height_and_width(size)))
    return counter.get_total_flops() // 2
