"""Trained module -> one .onnx file, its size, and a check that it computes the same."""

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
from dxc.errors import ExportError, first_line
from dxc.models.registry import output_names

OPSET = 17
MAX_RELATIVE_ERROR = 1e-4
CHECK_CHIPS = 4
LEAST_SCALE = 0.01
"""Least value that the error of an output is relative to. A network that has hardly learnt has logits of 0.002, which
are as good as 0."""

ANY_SIZES = ((16, 16), (37, 53), (100, 100), (128, 96))
"""Heights and widths at which a file of dynamic size is checked."""
EXAMPLE_SIZE = (60, 76)
"""Size of the trace. It is not one of the checked sizes: they have to reveal numbers that became constants."""


class Exported(NamedTuple):
    """One exported network. onnx_mb is the size of the file with its weights, in 1e6 bytes."""

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
    """Write a network as a self-contained ONNX file.

    Its input is `image` (batch, in_channels, height, width). Its outputs are those of
    dxc.models.registry.output_names, such as `scores` (batch, classes). The batch is dynamic. The model is left in eval
    mode on the CPU. The file appears only when it is complete.

    Args:
        model: the network.
        path: of the file.
        in_channels: number of channels of the image.
        size: of the image in pixels, one number or (height, width).
        metadata: what the file says about itself; size and outputs are filled in here. None: it says nothing, and
            dxc.deploy.predictor.Predictor refuses it.
        check: whether the file is checked with onnx.checker, and each output in ONNX Runtime against torch on random
            chips.

    Raises:
        ExportError: the file does not pass the check, or its channels or classes are not those of its metadata.
    """
    image = _height_and_width(size)
    if metadata is not None:
        metadata = metadata.model_copy(update={"size": image})
    return _export(model, path, in_channels, image, [image] if check else [], {0: "batch"}, metadata)


def export_any_size(
    model: nn.Module, path: Path, *, in_channels: int, metadata: Metadata | None = None
) -> Exported:
    """Write a network like export_onnx, but with dynamic height and width. The file is checked at ANY_SIZES.

    Modules with an attribute `any_size`, such as dxc.models.sppnet.SpatialPyramid, are told to compute with the size
    of each image. The cost of such a file depends on the image. To predict or measure it, export a fixed size.

    Args:
        model: the network.
        path: of the file.
        in_channels: number of channels of the image.
        metadata: as in export_onnx.

    Raises:
        ExportError: the network ties the file to one size.
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
    except Exception as error:  # torch's exporter, ONNX Runtime and the network may raise anything
        reason = first_line(error)
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
    """Trace a network, write the file, and check it.

    Args:
        model: the network.
        path: of the file.
        in_channels: number of channels of the image.
        example: height and width of the image of the trace.
        sizes: heights and widths of the images of the check.
        dynamic: the open axes of the input with their names.
        metadata: what the file says about itself.
    """
    import onnx

    model = model.cpu().eval()
    outputs = list(output_names(model))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with warnings.catch_warnings():
            # dynamo=False: the newer exporter writes the weights to a second file and adds 46 kB of debug
            # metadata. nn-Meter can read the graphs of this one.
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
            node.doc_string = ""  # it quotes source lines of this machine
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
    """_max_relative_error. Raises ExportError where it is larger than allowed."""
    error = _max_relative_error(model, path, outputs, in_channels, size)
    if math.isnan(error):
        raise ExportError(
            "the trained network answers with NaN, because its training diverged; lower "
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
    """Largest difference between ONNX Runtime and torch, relative to the largest value of the same output. It is NaN
    where a value is NaN."""
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    chips = torch.rand(CHECK_CHIPS, in_channels, *size, generator=generator)
    # images from dark to bright: a logit near 0 makes rounding look large, but it is not near 0 for all of them
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
    return float(np.max(errors))  # unlike max(), it keeps a NaN


def _height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def count_params(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, *, in_channels: int, size: int | tuple[int, int]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image.

    Args:
        model: the network.
        in_channels: number of channels of the image.
        size: of the image in pixels, one number or (height, width).
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = model.cpu().eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, in_channels, *_height_and_width(size)))
    return counter.get_total_flops() // 2
