"""Quantises an exported network: it computes in 8 bits. ONNX Runtime's quantisation does it.

dynamic   weights as uint8; activations are quantised while the network runs, by the range of each. The file is a
          quarter as large. On most processors convolutions become slower.
static    weights as int8, with a scale for each output channel; activations as uint8, with ranges that were found on
          calibration images. The file describes them with QuantizeLinear and DequantizeLinear (QDQ), which ONNX Runtime
          fuses into integer kernels. Faster on processors with instructions for 8 bits. Weights are from -64 to 64,
          which is 7 bits: x86 without VNNI adds two products of activation and weight in 16 bits, and with larger
          weights the sum is cut off. The network then answers wrongly there, and nothing says so.

Answers differ from those in float32. What that costs is measured on images, not assumed.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dxc.deploy.metadata import KEY, Metadata, read_metadata
from dxc.errors import CompressionError, DxcError, first_line, require_one_of, require_whole
from dxc.files import write_atomically

if TYPE_CHECKING:
    import onnx

KINDS = ("dynamic", "static")
CALIBRATION_BATCH = 32


class Quantised(NamedTuple):
    """One quantised file. onnx_mb is its size in 1e6 bytes; the weights are in it."""

    path: Path
    onnx_mb: float
    calibration_images: int


def quantise(source: Path, target: Path, kind: str, images: NDArray[np.float32] | None = None) -> Quantised:
    """Write a quantised copy of an exported network.

    The file appears only when it is complete. What the network says about itself stays in it; the metadata of dxc says
    how it was quantised too.

    Args:
        source: a file of dxc.deploy.export, in float32.
        target: the file to write.
        kind: dynamic or static.
        images: the network's input for some images that it was trained on, float32 (n, channels, height, width). static
            needs them, dynamic does not use them.

    Raises:
        ConfigError: the kind is unknown.
        CompressionError: there are no calibration images, they do not fit the network or are no numbers, or ONNX
            Runtime cannot quantise the file.
    """
    require_one_of("quantise", kind, KINDS)
    model = _loaded(source)
    calibration = _checked(images, model, source) if kind == "static" else None
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder,
        _explained(source),
    ):
        from onnxruntime import quantization as ort

        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        ort.quant_pre_process(model, prepared)  # folds batch norms, and says the shape of every tensor
        if calibration is None:
            ort.quantize_dynamic(
                prepared, written, weight_type=ort.QuantType.QUInt8
            )  # ConvInteger takes no int8
        else:
            ort.quantize_static(
                prepared,
                written,
                _reader(calibration, model.graph.input[0].name),
                quant_format=ort.QuantFormat.QDQ,
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                reduce_range=True,  # 7 bits: see the head of this module
            )
        used = 0 if calibration is None else len(calibration)
        _say(model, written, kind, used, source)
        written.replace(target)
    return Quantised(target, target.stat().st_size / 1e6, used)


def relabel(source: Path, target: Path, metadata: Metadata) -> None:
    """Copy a quantised file, and let it say where it comes from.

    Args:
        source: from quantise().
        target: the file to write.
        metadata: of the run that it belongs to. What it says of the network itself stays as it is.
    """

    model = _loaded(source, quantised=True)
    said = read_metadata(model, source)
    kept = {name: getattr(said, name) for name in ("size", "outputs", "quantised", "calibration_images")}
    metadata.model_copy(update=kept).write_to(model)
    write_atomically(target, model.SerializeToString())


def calibration_chips(train: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Numbers of the chips that a network is calibrated on, in ascending order.

    Args:
        train: numbers of the chips that it was trained on.
        count: how many are drawn; all of them where there are fewer.
        seed: of the draw.
    """
    require_whole("calibration_images", count, at_least=1)
    drawn = np.random.default_rng(seed).choice(np.sort(train), min(count, len(train)), replace=False)
    return np.sort(drawn)


def _loaded(source: Path, *, quantised: bool = False) -> onnx.ModelProto:
    import onnx

    try:
        model = onnx.load(source)
    except OSError as error:
        raise CompressionError(f"{source} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # onnx raises the errors of its protobuf
        raise CompressionError(f"{source} cannot be read as an ONNX file: {error}") from error
    if not model.graph.node:
        raise CompressionError(f"{source} cannot be read as an ONNX file: there is no network in it")
    operators = {node.op_type for node in model.graph.node}
    if not quantised and operators & {"DequantizeLinear", "DynamicQuantizeLinear"}:
        raise CompressionError(
            f"{source} is quantised already; quantise the file in float32 that it was made of"
        )
    return model


def _checked(images: NDArray[np.float32] | None, model: onnx.ModelProto, source: Path) -> NDArray[np.float32]:
    """The calibration images. Raises CompressionError where the network cannot be calibrated on them."""
    if images is None or not len(images):
        raise CompressionError(
            "static quantisation needs calibration images, some that the network was trained on; quantise=dynamic "
            "needs none"
        )
    said = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    shape = list(images.shape[1:])
    if len(said) != len(shape) or any(size not in (0, own) for size, own in zip(said, shape, strict=True)):
        raise CompressionError(f"{source} takes images of {said}, and the calibration images are of {shape}")
    if not np.isfinite(images).all():
        raise CompressionError("a calibration image holds NaN or infinite values")
    return np.asarray(images, np.float32)


def _reader(images: NDArray[np.float32], name: str) -> object:
    """What ONNX Runtime calibrates with: its CalibrationDataReader."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self, parts: Iterator[NDArray[np.float32]]) -> None:
            self._parts = parts

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            part = next(self._parts, None)
            return None if part is None else {name: part}

    return Reader(
        images[start : start + CALIBRATION_BATCH] for start in range(0, len(images), CALIBRATION_BATCH)
    )


def _say(model: onnx.ModelProto, written: Path, kind: str, images: int, source: Path) -> None:
    """Write into the quantised file what the network says about itself, and that it is quantised."""
    import onnx

    quantised = onnx.load(written)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    if any(each.key == KEY for each in model.metadata_props):
        said = read_metadata(model, source).model_copy(
            update={"quantised": kind, "calibration_images": images or None}
        )
        said.check_fits(quantised, source)
        said.write_to(quantised)
    for node in quantised.graph.node:
        node.doc_string = ""
    onnx.save(quantised, written)


@contextlib.contextmanager
def _explained(source: Path) -> Iterator[None]:
    """What ONNX Runtime raises becomes a CompressionError, and its hints on the root logger are not shown."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DxcError:
        raise
    except Exception as error:  # it raises errors of many classes
        reason = first_line(error)
        raise CompressionError(f"{source}: ONNX Runtime cannot quantise it: {reason}") from error
    finally:
        logging.disable(disabled)
