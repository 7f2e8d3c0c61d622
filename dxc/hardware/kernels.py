"""Exported file -> the kernels that a device runs, found by nn-Meter's own reader, detector and fusion rules.

A kernel is one or more operators that a runtime computes together (conv-relu). Method: Zhang et al. 2021,
"nn-Meter: towards accurate latency prediction of deep-learning model inference on diverse edge devices",
doi 10.1145/3458864.3467882.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dxc.errors import HardwareError
from dxc.untrusted import load_json

if TYPE_CHECKING:
    import onnx

LARGE = 1024
"""Initializers with more elements are weights: their shape counts, their values do not."""

NO_WORK = {
    "Constant",
    "Shape",
    "Gather",
    "Unsqueeze",
    "Squeeze",
    "Cast",
    "Identity",
    "ConstantOfShape",
    "Range",
}
"""Operators that only compute shapes, or pass a tensor on."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of a network.

    op: nn-Meter's type, such as 'conv-relu'. features: what its predictors take, for convolutions height =
    width of the input, channels in and out, kernel, stride, MFLOPs / 2 and parameters in millions; None where
    nn-Meter knows no features for it. macs: multiply-accumulates for one image. nodes: the ONNX nodes in it.
    """

    op: str
    features: tuple[float, ...] | None
    macs: int
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A network as nn-Meter reads it (its IR), with multiply-accumulates per node for one image."""

    source: str
    ir: Mapping[str, Any]
    macs: Mapping[str, int]
    grouped: frozenset[str] = frozenset()
    """Convolutions in groups that are not depthwise: nn-Meter would take them for dense ones."""


def read_graph(path: Path) -> Graph:
    """Read an ONNX file for prediction; the size of its input comes from the file, the batch is one image.

    Raises HardwareError for a file that cannot be read, an input with a size that is not fixed, and operators
    whose shapes cannot be inferred (each is named).
    """
    return graph_of(load_onnx(path), str(path))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file. Raises HardwareError for one that is none."""
    import onnx

    try:
        return onnx.load(path)
    except Exception as error:  # onnx raises what its protobuf raises
        raise HardwareError(f"{path} cannot be read as an ONNX file: {error}") from error


def graph_of(model: onnx.ModelProto, source: str) -> Graph:
    """As read_graph, for a model in memory (which is changed: weights are dropped, nodes get names)."""
    import onnx

    _fix_batch(model, source)
    _drop_weights(model)
    _pass_by_identities(model)
    for number, node in enumerate(model.graph.node):
        # nn-Meter keys nodes by name, and joins fused ones with ';'
        node.name = f"{number}:{node.op_type}:{node.name}".replace(";", ",")
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        raise HardwareError(f"{source}: the shapes of its tensors cannot be inferred: {error}") from error

    shapes = _shapes(model)
    ir = _nn_meter().read(model).convert()
    unknown = []
    for node in model.graph.node:
        if "type" in ir.get(node.name, {}).get("attr", {"type": ""}):
            continue
        ranks = [len(shapes[name]) for name in node.output if name in shapes]
        if node.op_type in NO_WORK or (ranks and max(ranks) <= 1):
            del ir[node.name]  # computes a shape: no kernel
        else:
            unknown.append(f"{node.op_type} ({node.name.split(':', 2)[2] or 'unnamed'})")
    if unknown:
        raise HardwareError(
            f"{source}: no shape can be inferred for {', '.join(unknown[:8])}{' ...' if unknown[8:] else ''}. "
            "Export the network with a fixed input size and standard ONNX operators."
        )
    macs = {node.name: _macs(node, shapes) for node in model.graph.node}
    grouped = {
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and 1 < _attribute(node, "group", 1) != shapes[node.input[0]][1]
    }
    return Graph(source, ir, macs, frozenset(grouped))


def detect(graph: Graph, rules: Path) -> list[Kernel]:
    """The kernels of a graph under a package's fusion rules (fusion_rules.json), in order of execution.

    Nodes that nn-Meter's detector leaves out (it drops a node without neighbours) come last, without features:
    nothing is lost silently.
    """
    check_rules(rules)
    detector = _nn_meter().detector(str(rules))
    detector.load_graph(dict(graph.ir))
    found = detector.get_kernels()
    graph_types = detector.model_graph.get_node_type
    blocks = [
        tuple(part for name in block for part in name.split(";"))
        for block in detector.bbs
        if any(graph_types(name) not in (None, "", *_nn_meter().dummy_types) for name in block)  # as it does
    ]
    kernels = []
    for kernel, nodes in zip(found, blocks, strict=True):
        features = None if graph.grouped.intersection(nodes) else _features(kernel)
        kernels.append(Kernel(kernel["op"], features, sum(graph.macs.get(name, 0) for name in nodes), nodes))
    seen = {name for kernel in kernels for name in kernel.nodes}
    for name, node in graph.ir.items():
        if name not in seen and node["attr"]["type"] not in _nn_meter().dummy_types:
            kernels.append(Kernel(node["attr"]["type"], None, graph.macs.get(name, 0), (name,)))
    return kernels


def predictor_names(op: str) -> tuple[str, ...]:
    """Names under which a package may hold the predictor of a kernel type, the most specific first.

    nn-Meter has one predictor for all convolutions (conv-bn-relu); a package may hold a finer one.
    """
    return tuple(dict.fromkeys((op, _nn_meter().predictor_name(op))))


def _features(kernel: dict[str, Any]) -> tuple[float, ...] | None:
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)  # nn-Meter logs every kernel to the root logger
    try:
        found = _nn_meter().features([kernel])
    except (KeyError, IndexError, TypeError, ValueError):
        return None  # nn-Meter knows the type but not this shape of it
    finally:
        logging.disable(disabled)
    return tuple(float(value) for value in found[0][kernel["op"]]) if found else None


def image_shape(model: onnx.ModelProto, source: str) -> list[int]:
    """Shape of the first input without its batch. Raises HardwareError where a size is left open."""
    weights = {initializer.name for initializer in model.graph.initializer}
    tensor = next(each for each in model.graph.input if each.name not in weights)
    dims = tensor.type.tensor_type.shape.dim
    free = [dim.dim_param or "?" for dim in dims[1:] if dim.dim_value <= 0]
    if free or len(dims) < 2:
        raise HardwareError(
            f"{source}: the size of input '{tensor.name}' is not fixed ({', '.join(free) or 'no shape'}), and "
            "cost depends on it. Export with a fixed size; only the batch may be left open."
        )
    return [dim.dim_value for dim in dims[1:]]


def _fix_batch(model: onnx.ModelProto, source: str) -> None:
    """One image; every other size has to be in the file."""
    image_shape(model, source)
    weights = {initializer.name for initializer in model.graph.initializer}
    for tensor in model.graph.input:
        if tensor.name not in weights:
            tensor.type.tensor_type.shape.dim[0].dim_value = 1
    for tensor in [*model.graph.output, *model.graph.value_info]:
        tensor.type.tensor_type.ClearField("shape")  # they may name the old batch; inference writes them anew


def _drop_weights(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > LARGE:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")


def _pass_by_identities(model: onnx.ModelProto) -> None:
    """Remove Identity nodes: nn-Meter's detector dies on those between initializers (equal biases) and at the end."""
    renamed = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    if not renamed:
        return

    def source(name: str) -> str:
        while name in renamed:
            name = renamed[name]
        return name

    kept = [node for node in model.graph.node if node.op_type != "Identity"]
    for node in kept:
        node.input[:] = [source(name) for name in node.input]
    for tensor in model.graph.output:
        tensor.name = source(tensor.name)
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    graph = model.graph
    shapes = {
        tensor.name: [dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
        for tensor in [*graph.input, *graph.value_info, *graph.output]
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _macs(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    """Multiply-accumulates of one node for one image; 0 for operators without any."""
    if node.op_type == "Conv":
        out, weight = shapes[node.output[0]], shapes[node.input[1]]
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type in ("Gemm", "MatMul"):
        left = shapes[node.input[0]]
        inner = left[0] if _attribute(node, "transA", 0) else left[-1]
        return math.prod(shapes[node.output[0]]) * inner
    return 0


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def check_rules(path: Path) -> None:
    """Raise HardwareError unless `path` is a file of fusion rules: {"BF_conv_relu": {"obey": true}, ...}."""
    try:
        rules = load_json(path)
    except (OSError, ValueError) as error:
        raise HardwareError(f"{path} is no file of fusion rules: {error}") from error
    if not isinstance(rules, dict) or not all(isinstance(r, dict) and "obey" in r for r in rules.values()):
        raise HardwareError(
            f'{path} is no file of fusion rules: it must read {{"BF_conv_relu": {{"obey": true}}}}'
        )


class _NnMeter(NamedTuple):
    """The parts of nn-Meter that dxc calls."""

    read: Callable[..., Any]
    detector: Callable[..., Any]
    features: Callable[[list[dict[str, Any]]], dict[int, dict[str, Any]]]
    predictor_name: Callable[[str], str]
    dummy_types: list[str]


@functools.cache
def _nn_meter() -> _NnMeter:
    """Import nn-Meter (2 s) once, without its warning about pkg_resources and its lines on stdout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nn_meter.ir_converter.onnx_converter import OnnxConverter
        from nn_meter.kernel_detector import KernelDetector
        from nn_meter.kernel_detector.utils.constants import DUMMY_TYPES
        from nn_meter.predictor.prediction.extract_feature import get_predict_features
        from nn_meter.predictor.prediction.predict_by_kernel import merge_conv_kernels
        from nn_meter.predictor.prediction.utils import get_kernel_name
    logging.getLogger("nn-Meter").setLevel(logging.ERROR)
    return _NnMeter(
        read=OnnxConverter,
        detector=KernelDetector,
        features=get_predict_features,
        predictor_name=lambda op: get_kernel_name(merge_conv_kernels(op)),
        dummy_types=DUMMY_TYPES,
    )
