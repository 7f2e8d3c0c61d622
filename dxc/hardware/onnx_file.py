"""Reads ONNX files from untrusted sources, with the files that hold their weights.

An exporter may leave the weights in files beside the .onnx ("external data"). Their names come from the file, which is
not trusted. So only files in its own folder are read, measured, copied and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from dxc.errors import HardwareError

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 1
"""Largest .onnx: no more fits into a protobuf message. Files with weights may be larger."""


def load_onnx(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """Read an ONNX file.

    Args:
        path: the file.
        weights: whether to read the weights in other files too.

    Raises:
        HardwareError: it is no ONNX file; or with `weights`, what data_files raises.
    """
    import onnx

    if not path.is_file():
        raise HardwareError(f"{path}: no such file")
    if not 0 < (size := path.stat().st_size) <= MAX_BYTES:
        why = f"it has {size / 1e9:.1f} GB, but at most 2.1 are possible" if size else "it is empty"
        raise HardwareError(f"{path} cannot be read as an ONNX file: {why}")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except Exception as error:  # onnx raises the errors of its protobuf
        raise HardwareError(f"{path} cannot be read as an ONNX file: {error}") from error
    if not model.graph.node:
        raise HardwareError(f"{path} cannot be read as an ONNX file: there is no network in it")
    if weights and data_files(path, model):
        try:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        except Exception as error:
            raise HardwareError(f"{path}: the weights beside it cannot be read: {error}") from error
    return model


def load_small(path: Path, model: onnx.ModelProto, elements: int) -> None:
    """Read the small weights that lie in other files, because shapes may depend on them.

    Args:
        path: the .onnx.
        model: what load_onnx has read; changed.
        elements: weights with more elements are not read.

    Raises:
        HardwareError: as data_files.
    """
    import onnx

    if not data_files(path, model):
        return
    for tensor in _tensors(model):
        if tensor.data_location == tensor.EXTERNAL and math.prod(tensor.dims) <= elements:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if 0 < int(entries.get("length") or 0) <= 16 * elements:
                onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))


def data_files(path: Path, model: onnx.ModelProto | None = None) -> list[Path]:
    """The files with weights beside an ONNX file, each once.

    Args:
        path: the .onnx.
        model: what load_onnx has read; None reads it.

    Raises:
        HardwareError: a file is missing or too short, or a name leads out of the folder of the .onnx.
    """
    model = load_onnx(path) if model is None else model
    files: dict[str, Path] = {}
    for tensor in _tensors(model):
        if not tensor.external_data and tensor.data_location != tensor.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in files:
            files[location] = _own_file(path, location)
        try:
            end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
        except ValueError:
            end = -1
        if not 0 <= end <= files[location].stat().st_size:
            raise HardwareError(
                f"{path}: {location!r} beside it lacks some of its weights ('{tensor.name}'); copy both again"
            )
    return list(files.values())


def _own_file(path: Path, location: str) -> Path:
    """The file at a location that an ONNX file names, if it lies in that file's folder."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    leaves = posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts)
    try:
        file = path.parent / location
        if not location or leaves or not file.resolve().is_relative_to(path.parent.resolve()):
            raise HardwareError(
                f"{path} names {location!r} as the file of its weights; only files in the folder of the .onnx are read"
            )
        there = file.is_file()
    except (OSError, ValueError):  # not a valid name of a file
        there = False
    if not there:
        raise HardwareError(
            f"{path}: its weights lie in {location!r} beside it, but there is no such file; copy both"
        )
    return file


def onnx_mb(path: Path) -> float:
    """Size of an ONNX file with its files of weights, 1e6 bytes. Raises HardwareError as load_onnx and data_files."""
    return sum(file.stat().st_size for file in (path, *data_files(path))) / 1e6


def inputs(model: onnx.ModelProto, source: str) -> list[onnx.ValueInfoProto]:
    """The inputs that take data. Files from before ONNX 1.5 also list their weights among the inputs.

    Args:
        model: the file.
        source: its name, for messages.

    Raises:
        HardwareError: there is no input, or one is not a tensor.
    """
    weights = {initializer.name for initializer in model.graph.initializer}
    fed = [each for each in model.graph.input if each.name not in weights]
    if not fed:
        raise HardwareError(f"{source} has no input: there is nothing to feed it with")
    for each in fed:
        if each.type.WhichOneof("value") != "tensor_type":
            raise HardwareError(
                f"{source}: input '{each.name}' is not a tensor; a network of images takes tensors"
            )
    return fed


def fixed_batch(model: onnx.ModelProto, source: str) -> int:
    """Fixed batch of the first input; 1 where it is open. Raises HardwareError as inputs() does."""
    dims = inputs(model, source)[0].type.tensor_type.shape.dim
    return dims[0].dim_value if dims and dims[0].dim_value > 0 else 1


def image_shape(model: onnx.ModelProto, source: str) -> list[int]:
    """Shape of the first input without its batch. Raises HardwareError where a size is open."""
    tensor = inputs(model, source)[0]
    dims = tensor.type.tensor_type.shape.dim
    free = [dim.dim_param or "?" for dim in dims[1:] if dim.dim_value <= 0]
    if free or len(dims) < 2:
        raise HardwareError(
            f"{source}: the size of input '{tensor.name}' is not fixed ({', '.join(free) or 'no shape'}), and "
            "cost depends on it. Export with a fixed size; only the batch may be left open."
        )
    return [dim.dim_value for dim in dims[1:]]


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and the nodes of the graphs inside them (If, Loop, Scan)."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from all_nodes(graph.node)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that is stored in a file: weights, and the values of attributes."""
    nodes = list(all_nodes([*model.graph.node, *(node for each in model.functions for node in each.node)]))
    attributes = [attribute for node in nodes for attribute in node.attribute]
    graphs = [model.graph, *(graph for each in attributes for graph in (each.g, *each.graphs))]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
