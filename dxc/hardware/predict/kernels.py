"""Exported file -> the kernels that a device runs. nn-Meter's own reader, detector and fusion rules find them.

A kernel is one or more operators that a runtime computes together, such as conv-relu. Method: Zhang et al. 2021,
"nn-Meter: towards accurate latency prediction of deep-learning model inference on diverse edge devices",
doi 10.1145/3458864.3467882.
"""

from __future__ import annotations

import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dxc.errors import HardwareError
from dxc.hardware.network import (
    Network,
    attribute,
    network_of,
    read_network,
    without_rounding,
    without_shape,
)
from dxc.untrusted import load_json

if TYPE_CHECKING:
    import onnx

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
"""Operators that only compute shapes or forward a tensor."""


INT8 = "int8-"
"""Begins the type of a kernel of a statically quantised network."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of a network.

    Attributes:
        op: nn-Meter's type, such as 'conv-relu'; 'int8-conv-relu' where it computes with integers.
        features: inputs of its predictors; None where nn-Meter has none for it. A convolution has height = width of the
            input, channels in and out, kernel, stride, MFLOPs / 2 and parameters in millions.
        macs: multiply-accumulates for one image; None where those of an operator in it are unknown.
        nodes: the ONNX nodes in it.
    """

    op: str
    features: tuple[float, ...] | None
    macs: int | None
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A network as nn-Meter reads it (its IR), with multiply-accumulates per node for one image."""

    source: str
    ir: Mapping[str, Any]
    macs: Mapping[str, int | None]
    integer: frozenset[str] = frozenset()
    """Nodes of a statically quantised network that compute with integers."""
    unlike: frozenset[str] = frozenset()
    """Nodes that nn-Meter would mistake for others. It takes grouped convolutions that are not depthwise for dense
    ones, and products of several rows for a linear layer, which has one row."""


def read_graph(path: Path) -> Graph:
    """Read an ONNX file for prediction. The size of the input comes from the file; the batch is one image.

    Raises HardwareError for a file that cannot be read, for an input with an open size, for operators whose shapes
    cannot be inferred (it names each), and for a network that computes neither in float32 nor in static int8.
    """
    return graph_of_network(read_network(path))


def graph_of(model: onnx.ModelProto, source: str) -> Graph:
    """Like read_graph, for a model in memory.

    Args:
        model: the model. It is changed: weights are dropped and nodes get names.
        source: name of the file, for messages.
    """
    return graph_of_network(network_of(model, source))


def graph_of_network(network: Network) -> Graph:
    """Like read_graph, for a network that read_network has read."""
    network, integer = without_rounding(network)
    if network.other_numbers:
        raise HardwareError(
            f"{network.source}: it does not compute in float32 ({network.other_numbers}), but predictors describe "
            "only kernels of float32 and of static int8 (QDQ); it can be measured"
        )
    nodes = [node for node in network.model.graph.node if not network.is_constant(node)]
    if unknown := [node for node in nodes if not any(name in network.shapes for name in node.output)]:
        raise without_shape(network, unknown)
    try:
        ir = _nn_meter().read(_for_nn_meter(network, nodes)).convert()
        unlike = {node.name for node in nodes if _complete(ir, node, network)}
    except Exception as error:  # nn-Meter trusts what it reads
        raise _not_read(network.source, error) from error
    for node in ir.values():
        for side in ("inbounds", "outbounds"):
            node[side] = [
                name for name in node[side] if name in ir
            ]  # nn-Meter's own removal skips every other name
        for side in ("input_shape", "output_shape"):
            node["attr"][side] = [
                [1, *shape[1:]] if shape and shape[0] == network.batch else shape
                for shape in node["attr"][side]
            ]
    return Graph(network.source, ir, network.node_macs, integer, frozenset(unlike))


def _for_nn_meter(network: Network, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The network without the nodes that make weights. Their outputs become weights without values."""
    from onnx import TensorProto

    model = type(network.model).FromString(network.model.SerializeToString())
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    known = [tensor for tensor in graph.value_info if tensor.name not in network.constants]
    graph.initializer.extend(
        TensorProto(name=name, dims=network.shapes[name], data_type=TensorProto.FLOAT)
        for name in sorted(network.constants - weights)
        if name in network.shapes
    )
    for field, kept in ((graph.node, nodes), (graph.value_info, known)):
        copies = [type(each).FromString(each.SerializeToString()) for each in kept]
        del field[:]
        field.extend(copies)
    return model


def _complete(ir: dict[str, Any], node: onnx.NodeProto, network: Network) -> bool:
    """Complete a node in nn-Meter's IR, or remove it if it only computes a shape.

    Returns:
        Whether nn-Meter would mistake it for another kind of node.
    """
    shapes = network.shapes
    if node.name not in ir:
        return False  # a second Slice of a tensor: nn-Meter joins both into one kernel
    given = [shapes[name] for name in node.input if name in shapes and name not in network.constants]
    made = [shapes[name] for name in node.output if name in shapes]
    attr = ir[node.name]["attr"]
    macs = network.node_macs[node.name]
    if "type" not in attr:  # nn-Meter omits nodes whose input or output is a vector
        if macs == 0 and (node.op_type in NO_WORK or max(map(len, made)) <= 1):
            del ir[node.name]
            return False
        attr |= {"type": node.op_type, "attr": {}, "input_shape": given or [[1]], "output_shape": made}
        return True
    if node.op_type == "Conv":
        attr["attr"].setdefault(
            "kernel_shape", shapes[node.input[1]][2:]
        )  # a file may omit it, because the weights imply it
        if len(given[0]) != 4:
            attr["type"] = f"Conv{len(given[0]) - 2}d"  # nn-Meter's types are those of images
        return 1 < attribute(node, "group", 1) != given[0][1]
    if node.op_type in ("Gemm", "MatMul"):
        return math.prod(made[0][:-1]) != network.batch or len(given) > 1
    return False


def _not_read(source: str, error: Exception) -> HardwareError:
    return HardwareError(f"{source}: nn-Meter cannot read this network ({type(error).__name__}: {error})")


def detect(graph: Graph, rules: Path) -> list[Kernel]:
    """The kernels of a graph under a package's fusion rules (fusion_rules.json), in order of execution.

    nn-Meter's detector drops nodes without neighbours. They come last here, without features, so that nothing is lost
    silently.

    Args:
        graph: the network.
        rules: path of fusion_rules.json.

    Raises:
        HardwareError: the rules or the network cannot be read.
    """
    check_rules(rules)
    try:
        detector = _nn_meter().detector(str(rules))
        detector.load_graph(dict(graph.ir))
        found = detector.get_kernels()
    except Exception as error:  # as above
        raise _not_read(graph.source, error) from error
    graph_types = detector.model_graph.get_node_type
    blocks = [
        tuple(part for name in block for part in name.split(";"))
        for block in detector.bbs
        if any(
            graph_types(name) not in (None, "", *_nn_meter().dummy_types) for name in block
        )  # as nn-Meter does
    ]
    kernels = []
    for kernel, nodes in zip(found, blocks, strict=True):
        if kernel["op"] == "Gather":
            features = _gathered(graph.ir[nodes[0]]["attr"])
        else:
            features = None if graph.unlike.intersection(nodes) else _features(kernel)
        op = f"{INT8 * bool(graph.integer.intersection(nodes))}{kernel['op']}"
        kernels.append(Kernel(op, features, sum_macs(graph.macs.get(n, 0) for n in nodes), nodes))
    seen = {name for kernel in kernels for name in kernel.nodes}
    for name, node in graph.ir.items():
        if name not in seen and node["attr"]["type"] not in _nn_meter().dummy_types:
            op = f"{INT8 * (name in graph.integer)}{node['attr']['type']}"
            kernels.append(Kernel(op, None, graph.macs.get(name, 0), (name,)))
    return kernels


def predictor_names(op: str) -> tuple[str, ...]:
    """Names under which a package may hold the predictor of a kernel type, the most specific first.

    nn-Meter has one predictor for all convolutions (conv-bn-relu). A package may hold a more specific one. Kernels that
    compute with integers have predictors of their own. There an addition after a convolution is a call of its own, so
    that both together are another predictor.
    """
    plain = op.removeprefix(INT8)
    name = _nn_meter().predictor_name(plain)
    if plain != op:
        name = f"{INT8}{name}{'-add' * ('conv' in plain and 'add' in plain)}"
    return tuple(dict.fromkeys((op, name)))


def _gathered(attr: dict[str, Any]) -> tuple[float, ...] | None:
    """Features of a Gather from images: height = width and channels of the input, and the axis (2 rows, 3 columns).

    nn-Meter has no features for it, so these are dxc's own. calibrate.py makes a predictor from them for the bins of a
    spatial pyramid (dxc.models.sppnet). Columns take several times as long as rows.
    """
    image = attr["input_shape"][0]
    if len(image) != 4 or (axis := attr["attr"].get("axis", 0)) not in (2, 3):
        return None
    return float(image[1]), float(image[3]), float(axis)


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


def sum_macs(each: Iterable[int | None]) -> int | None:
    """Sum of multiply-accumulates; None where one is unknown."""
    known = list(each)
    return None if None in known else sum(macs for macs in known if macs is not None)


def check_rules(path: Path) -> None:
    """Raise HardwareError unless `path` is a file of fusion rules: {"BF_conv_relu": {"obey": true}, ...}."""
    try:
        rules = load_json(path)
    except (OSError, ValueError) as error:
        raise HardwareError(f"{path} is not a file of fusion rules: {error}") from error
    if not isinstance(rules, dict) or not all(isinstance(r, dict) and "obey" in r for r in rules.values()):
        raise HardwareError(
            f'{path} is not a file of fusion rules, such as {{"BF_conv_relu": {{"obey": true}}}}'
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
    """Import nn-Meter once (2 s), without its warning about pkg_resources and its lines on stdout."""
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
