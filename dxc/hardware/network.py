"""An ONNX network with the shape of every tensor, and the multiply-accumulates of every node for one image.

A file from elsewhere may be written in many ways. So a network is brought into one form before anything is counted.
Local functions are inlined. Weights that nodes make (Constant, ConstantOfShape, Transpose of a weight, ...) become
weights. Operators that ONNX Runtime writes when it optimises or quantises a file (com.microsoft: FusedGemm, QGemm, ...)
are replaced by the standard operators that they stand for. An unknown shape never counts as a scalar, and an operator
with unknown arithmetic never counts as one without arithmetic.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.errors import HardwareError
from dxc.hardware.onnx_file import all_nodes, fixed_batch, image_shape, inputs, load_onnx, load_small

if TYPE_CHECKING:
    import onnx

LARGE = 1024
"""Initializers with more elements are weights: only their shape is needed, not their values."""

MICROSOFT = "com.microsoft"
Shape = list[int]

QUANTISED = re.compile(r"QLinear|QGemm|QAttention|[Qq]uantize|Integer|NBits|QMoE")
"""Operators of quantised networks, whose kernels compute with integers."""

WITHOUT_MACS = """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Bernoulli
    BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad
    Clip Col2Im Compress Concat ConcatFromSequence Constant ConstantOfShape Cos Cosh CumProd CumSum DepthToSpace
    DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
    GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf
    IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool Max MaxPool
    MaxRoiPool MaxUnpool Mean MeanVarianceNormalization Min Mish Mod Mul Multinomial Neg NonMaxSuppression NonZero
    Not OneHot Optional OptionalGetElement OptionalHasElement Or PRelu Pad Pow QuantizeLinear RMSNormalization
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RoiAlign RotaryEmbedding Round Scatter ScatterElements ScatterND Selu SequenceAt
    SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength Shape Shrink Sigmoid Sign Sin Sinh
    Size Slice Softmax Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt Squeeze Sub Sum Swish Tan Tanh
    ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
""".split()  # noqa: SIM905
"""Standard operators that have no MACs by convention: they move, compare or reduce values, or are elementwise."""

SAME_SHAPE = """
    BiasGelu DequantizeLinear FastGelu Gelu QuantizeLinear QuickGelu SimplifiedLayerNormalization
    SkipLayerNormalization SkipSimplifiedLayerNormalization
""".split()  # noqa: SIM905
"""Operators of ONNX Runtime without MACs. Their first output has the shape of their first input."""

STAND_FOR: dict[str, tuple[str, tuple[int, ...]]] = {
    "QLinearConv": ("Conv", (0, 3, 8)),
    "ConvInteger": ("Conv", (0, 1)),
    "QLinearMatMul": ("MatMul", (0, 3)),
    "MatMulInteger": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "QGemm": ("Gemm", (0, 3, 6)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Sigmoid", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)),
    "QLinearSoftmax": ("Softmax", (0,)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
}
"""Quantised operator -> the standard operator with the same shapes and MACs, and the inputs that it takes."""

NOT_FOLDED = ("Random", "Bernoulli", "Multinomial", "If", "Loop", "Scan", "Sequence", "Optional")


@dataclass(frozen=True)
class Network:
    """A network with its shapes. Tensors that do not depend on the input are weights (`constants`).

    Attributes:
        model: in the form that the head of this module describes. Nodes are named NUMBER:OPERATOR:NAME, with the
            operator and name of the file.
        batch: images in `shapes`: one, unless the file has a fixed batch.
        node_macs: multiply-accumulates of each node for one image; None where unknown.
    """

    source: str
    model: onnx.ModelProto
    batch: int
    shapes: Mapping[str, Shape]
    constants: frozenset[str]
    node_macs: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one image; None where those of an operator are unknown."""
        each = list(self.node_macs.values())
        return None if None in each else sum(macs for macs in each if macs is not None)

    @property
    def uncounted(self) -> str:
        """'2 Attention, 1 DFT': operators with unknown MACs; '' where there are none."""
        return _listing(_op(name) for name, macs in self.node_macs.items() if macs is None)

    @property
    def other_numbers(self) -> str:
        """'4 QLinearConv, 2 Conv of FLOAT16': operators that do not compute in float32; '' where all do."""
        from onnx import TensorProto

        graph = self.model.graph
        tensors = (*graph.input, *graph.value_info, *graph.output)
        kinds = {tensor.name: tensor.type.tensor_type.elem_type for tensor in tensors}
        others = {getattr(TensorProto, kind): kind for kind in ("FLOAT16", "BFLOAT16", "DOUBLE")}
        found = []
        for node in graph.node:
            op, kind = _op(node.name), kinds.get(node.output[0])
            if self.is_constant(node):
                continue
            if QUANTISED.search(op):
                found.append(op)
            elif self.node_macs.get(node.name) and kind in others:
                found.append(f"{op} of {others[kind]}")
        return _listing(found)

    def is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether the outputs of a node do not depend on the input of the network."""
        return set(node.output) <= self.constants


def read_network(path: Path) -> Network:
    """Read an ONNX file with the shapes of its tensors and its MACs.

    Raises HardwareError for a file that cannot be read, for an input with an open size, and for arithmetic that depends
    on a shape that cannot be inferred; it names the node.
    """
    model = load_onnx(path)
    absent: HardwareError | None = None
    try:
        load_small(path, model, LARGE)
    except HardwareError as error:
        absent = error
    try:
        return network_of(model, str(path))  # most shapes are in the file itself
    except HardwareError as error:
        raise absent or error from error


def network_of(model: onnx.ModelProto, source: str) -> Network:
    """Like read_network, for a model in memory.

    Args:
        model: the model, which is changed.
        source: name of the file, for messages.
    """
    import onnx.inliner

    image_shape(model, source)
    dims = inputs(model, source)[0].type.tensor_type.shape.dim
    open_batch = dims[0].dim_value <= 0
    batch = _fix_inputs(model, source)
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        hints = {tensor.name: tensor for tensor in (*model.graph.value_info, *model.graph.output)}
        hints = {name: type(tensor).FromString(tensor.SerializeToString()) for name, tensor in hints.items()}
        _plain(model)
        # the shapes in the file are those of its own batch
        shapes, model = _inferred(model, {} if open_batch else hints)
    except HardwareError:
        raise
    except Exception as error:  # onnx may raise anything for a damaged graph
        raise HardwareError(f"{source}: the shapes of its tensors cannot be inferred: {error}") from error
    constants = _constants(model)
    network = Network(source, model, batch, shapes, constants)
    try:
        macs = {
            node.name: 0 if network.is_constant(node) else _macs(node, network) for node in model.graph.node
        }
    except (IndexError, ValueError, TypeError) as error:
        raise HardwareError(
            f"{source}: its MACs cannot be counted because a node is damaged: {error}"
        ) from error
    per_image = {name: each if each is None else round(each / batch) for name, each in macs.items()}
    return Network(source, model, batch, shapes, constants, per_image)


ROUNDING = ("QuantizeLinear", "DequantizeLinear")


def without_rounding(network: Network) -> tuple[Network, frozenset[str]]:
    """A statically quantised network as the float32 network that it stands for, and its nodes that compute with
    integers.

    Such a file (QDQ) holds the operators of float32, each between nodes that round and scale. A runtime computes what
    stands between them with integers. For any other network: the same, and no node.
    """
    nodes = [node for node in network.model.graph.node if not network.is_constant(node)]
    rounding = [node for node in nodes if _op(node.name) in ROUNDING and node.op_type in ROUNDING]
    scaled = {node.output[0] for node in rounding if node.op_type == "DequantizeLinear"}
    if not scaled:
        return network, frozenset()
    inner = [node for node in nodes if node not in rounding]
    integer = {
        node.name
        for node in inner
        if (given := [name for name in node.input if name and name not in network.constants])
        and scaled.issuperset(given)
    }
    if not integer:
        return network, frozenset()
    model = type(network.model).FromString(network.model.SerializeToString())
    names = {node.name for node in rounding}
    for node in model.graph.node:
        if node.name in names:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
    _pass_by_identities(model)
    kept = {node.name for node in model.graph.node}
    macs = {name: each for name, each in network.node_macs.items() if name in kept}
    return replace(network, model=model, node_macs=macs), frozenset(integer)


def without_shape(network: Network, nodes: list[onnx.NodeProto]) -> HardwareError:
    """The error for nodes that depend on a shape that cannot be inferred. It names the first such nodes.

    Args:
        network: the network.
        nodes: the nodes whose shapes are missing.
    """
    names = [_called(_origin(node, network)) for node in nodes]
    names = list(dict.fromkeys(names))
    return HardwareError(
        f"{network.source}: no shape can be inferred for {', '.join(names[:8])}{' ...' if names[8:] else ''}. Export "
        "the network with a fixed input size and standard ONNX operators, and give that file, not one that a runtime "
        "has optimised."
    )


def _op(name: str) -> str:
    """The operator in the file, from a node's name."""
    return name.split(":", 2)[1]


def _called(node: onnx.NodeProto) -> str:
    """'Conv (stem)': operator and name in the file."""
    _, op, name = node.name.split(":", 2)
    return f"{op} ({name or 'unnamed'})"


def _listing(ops: Any) -> str:
    return ", ".join(f"{count} {op}" for op, count in Counter(ops).items())


def _fix_inputs(model: onnx.ModelProto, source: str) -> int:
    """Set the batch of all inputs to one image, or to the fixed batch of the file. Returns the batch.

    Raises HardwareError where another size is open.
    """
    batch = fixed_batch(model, source)
    fed = inputs(model, source)
    for tensor in fed:
        dims = tensor.type.tensor_type.shape.dim
        free = [dim.dim_param or "?" for dim in dims[1:] if dim.dim_value <= 0]
        if free or not tensor.type.tensor_type.HasField("shape"):
            raise HardwareError(
                f"{source}: the size of input '{tensor.name}' is not fixed ({', '.join(free) or 'no shape'}), and cost "
                "depends on it. Export with a fixed size; only the batch may be left open."
            )
        if dims and dims[0].dim_value <= 0:
            dims[0].dim_value = batch
    del model.graph.input[:]
    model.graph.input.extend(fed)
    return batch


def _plain(model: onnx.ModelProto) -> None:
    """Bring the graph into the form that the head of this module describes, without shapes and values of weights."""
    import onnx

    graph = model.graph
    model.ir_version = max(model.ir_version, 8)  # up to version 3, weights had to be inputs too
    if not any(each.domain in ("", "ai.onnx") for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", 17))
    _pass_by_identities(model)
    del graph.value_info[:]  # it may hold the old batch; inference writes it again
    for tensor in graph.output:
        tensor.ClearField("type")
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(graph.node):
        # nn-Meter keys nodes by name, and joins fused ones with ';'
        node.name = f"{number}:{node.op_type.replace(':', '_')}:{node.name}".replace(";", ",")
        if node.domain == "ai.onnx":
            node.domain = ""
        if (value := _constant(node)) is not None:
            graph.initializer.append(value)
        else:
            nodes += _standard(node)
    _set_nodes(graph, nodes)
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > LARGE:
            for values in (
                "raw_data",
                "float_data",
                "int32_data",
                "int64_data",
                "double_data",
                "uint64_data",
            ):
                tensor.ClearField(values)
        tensor.ClearField("external_data")  # for small weights too: no shape depends on their values
        tensor.data_location = tensor.DEFAULT


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _pass_by_identities(model: onnx.ModelProto) -> None:
    """Remove Identity nodes. nn-Meter's detector crashes on those between initializers (equal biases) or at the end."""
    renamed = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Identity" and node.domain in ("", "ai.onnx") and node.input and node.output
    }
    if not renamed:
        return

    def source(name: str) -> str:
        seen = set()
        while name in renamed and name not in seen:
            seen.add(name)
            name = renamed[name]
        return name

    kept = [node for node in model.graph.node if not node.output or node.output[0] not in renamed]
    for node in all_nodes(kept):
        node.input[:] = [source(name) for name in node.input]
    for tensor in model.graph.output:
        tensor.name = source(tensor.name)
    _set_nodes(model.graph, kept)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The value of a Constant node as a weight. None for other nodes and for sparse values."""
    import numpy as np
    from onnx import helper, numpy_helper

    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    name, value = node.attribute[0].name, helper.get_attribute_value(node.attribute[0])
    if name == "value":
        tensor = type(value).FromString(value.SerializeToString())
        tensor.name = node.output[0]
        return tensor
    if name in ("value_float", "value_floats", "value_int", "value_ints"):
        kind = np.float32 if "float" in name else np.int64
        return numpy_helper.from_array(np.array(value, kind), node.output[0])
    return None


def _standard(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The standard operators that replace one of ONNX Runtime or of a quantised network; else the node itself."""
    from onnx import helper

    if node.domain not in ("", MICROSOFT):
        return [node]
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    if node.op_type in STAND_FOR and not attributes.get("channels_last", 0):
        node.op_type, taken = STAND_FOR[node.op_type]
        node.domain = ""
        given = [node.input[at] for at in taken if at < len(node.input)]
        node.input[:] = given
    elif node.op_type == "QLinearConcat":
        node.op_type, node.domain = "Concat", ""
        node.input[:] = list(node.input[2::3])
    elif node.op_type in ("FusedConv", "FusedGemm") and node.domain == MICROSOFT:
        return _unfused(node, attributes)
    return [node]


def _unfused(node: onnx.NodeProto, attributes: dict[str, Any]) -> list[onnx.NodeProto]:
    """FusedConv or FusedGemm as the operators that were fused: Conv or Gemm, [an addition,] an activation."""
    from onnx import helper

    function = attributes.pop("activation", b"").decode(errors="replace")
    own = {name: value for name, value in attributes.items() if not name.startswith("activation")}
    op, result = node.op_type.removeprefix("Fused"), node.output[0]
    parts = [
        helper.make_node(op, list(node.input[:3]), [f"{result}:{op}"], node.name, **own),
    ]
    if len(node.input) > 3 and node.input[3]:
        added = [parts[-1].output[0], node.input[3]]
        parts.append(helper.make_node("Add", added, [f"{result}:Add"], f"{node.name}:Add"))
    if function:
        before = [parts[-1].output[0]]
        parts.append(helper.make_node(function, before, [f"{result}:act"], f"{node.name}:{function}"))
    parts[-1].output[0] = result
    return parts


def _inferred(
    model: onnx.ModelProto, hints: Mapping[str, onnx.ValueInfoProto]
) -> tuple[dict[str, Shape], onnx.ModelProto]:
    """Infer the shapes of all tensors as far as possible, and write them into the model.

    This is onnx's inference. Where it stops, the shapes of ONNX Runtime's operators are added, and small nodes whose
    values follow from the shapes are computed. The shapes that the file itself gives (`hints`) are used last.
    """
    import onnx

    for _ in range(len(model.graph.node) + 2):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        shapes = _shapes(model)
        unknown = [node for node in model.graph.node if node.output and node.output[0] not in shapes]
        if not unknown:
            break
        known = {
            node.output[0]: shape for node in unknown if (shape := _microsoft_shape(node, shapes)) is not None
        }
        if not known and not _fold(model, shapes):
            known = {
                name: each
                for node in unknown
                for name in node.output
                if name in hints and (each := _shape(hints[name])) is not None
            }
            if not known:
                break
        for name, shape in known.items():
            _say(model, name, shape)
    return shapes, model


def _say(model: onnx.ModelProto, name: str, shape: Shape) -> None:
    """Write a tensor's shape into the model."""
    import onnx

    for tensor in (*model.graph.value_info, *model.graph.output):
        if tensor.name == name:
            break
    else:
        tensor = model.graph.value_info.add(name=name)
    kind = tensor.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
    tensor.CopyFrom(onnx.helper.make_tensor_value_info(name, kind, shape))


def _shape(tensor: onnx.ValueInfoProto) -> Shape | None:
    """The shape of a tensor; None where it is unknown or a size in it is."""
    if tensor.type.WhichOneof("value") != "tensor_type" or not tensor.type.tensor_type.HasField("shape"):
        return None
    dims = tensor.type.tensor_type.shape.dim
    known = all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims)
    return [dim.dim_value for dim in dims] if known else None


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    graph = model.graph
    tensors = (*graph.input, *graph.value_info, *graph.output)
    shapes = {tensor.name: shape for tensor in tensors if (shape := _shape(tensor)) is not None}
    return shapes | {t.name: list(t.dims) for t in graph.initializer if all(size >= 0 for size in t.dims)}


def _microsoft_shape(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> Shape | None:
    """Output shape of an operator that only ONNX Runtime knows."""
    import numpy as np

    if node.op_type in SAME_SHAPE and node.input:
        return shapes.get(node.input[0])
    if node.op_type == "FusedMatMul" and node.domain == MICROSOFT and len(node.input) > 1:
        left, right = (shapes.get(name) for name in node.input[:2])
        if left is None or right is None or min(len(left), len(right)) < 2:
            return None
        if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
            return None
        rows = left[-1] if attribute(node, "transA", 0) else left[-2]
        columns = right[-2] if attribute(node, "transB", 0) else right[-1]
        return [*np.broadcast_shapes(tuple(left[:-2]), tuple(right[:-2])), rows, columns]
    return None


def _fold(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Compute small nodes whose inputs are known, and sizes of known tensors. Returns whether there were any."""
    import numpy as np
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    values = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= LARGE and tensor.data_type != tensor.STRING and _has_values(tensor)
    }
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        shape = shapes.get(node.output[0]) if node.output else None
        result: Any = None
        if node.domain or len(node.output) != 1 or node.op_type.startswith(NOT_FOLDED):
            pass
        elif node.op_type == "Shape" and node.input[0] in shapes:
            begin, end = attribute(node, "start", 0), attribute(node, "end", 2**31)
            result = np.array(shapes[node.input[0]][begin:end], np.int64)
        elif (
            shape is not None
            and math.prod(shape) <= LARGE
            and node.input
            and {*node.input} - {""} <= set(values)
        ):
            with contextlib.suppress(Exception):  # a node that cannot be computed stays as it is
                feeds = {name: values[name] for name in node.input if name}
                (result,) = ReferenceEvaluator(_alone(node, model)).run(None, feeds)
        if isinstance(result, np.ndarray | np.generic) and np.size(result) <= LARGE:
            values[node.output[0]] = np.asarray(result)
            model.graph.initializer.append(numpy_helper.from_array(values[node.output[0]], node.output[0]))
        else:
            kept.append(node)
    folded = len(kept) < len(model.graph.node)
    _set_nodes(model.graph, kept)
    return folded


def _has_values(tensor: onnx.TensorProto) -> bool:
    """Whether the values of a weight are in memory. Large ones are dropped, and others may lie in another file."""
    return (
        bool(tensor.raw_data)
        or math.prod(tensor.dims) == 0
        or any(
            len(getattr(tensor, each))
            for each in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        )
    )


def _alone(node: onnx.NodeProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of one node."""
    from onnx import TensorProto, helper

    def tensor(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)

    fed = [tensor(name) for name in dict.fromkeys(node.input) if name]
    graph = helper.make_graph([node], "one", fed, [tensor(name) for name in node.output])
    return helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=8)


def _constants(model: onnx.ModelProto) -> frozenset[str]:
    """Tensors that do not depend on the input: weights, and tensors that are computed only from weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    for node in model.graph.node:
        made = node.op_type == "Constant" or (node.input and not node.op_type.startswith(NOT_FOLDED))
        if made and all(not name or name in constants for name in node.input):
            constants.update(node.output)
    return frozenset(constants)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _origin(node: onnx.NodeProto, network: Network) -> onnx.NodeProto:
    """The first node with an unknown shape among those on which this node depends."""
    makers = {name: each for each in network.model.graph.node for name in each.output}
    seen: set[str] = set()
    while node.name not in seen:
        seen.add(node.name)
        open_ = [name for name in node.input if name and name not in network.shapes and name in makers]
        if open_:
            node = makers[open_[0]]
    return node


# Multiply-accumulates of one node for the whole batch, from (node, shapes of inputs, shape of the first output).


def _conv(node: onnx.NodeProto, given: list[Shape], out: Shape) -> int:
    return math.prod(out) * math.prod(given[1][1:])


def _transposed(node: onnx.NodeProto, given: list[Shape], out: Shape) -> int:
    return math.prod(given[0]) * math.prod(given[1][1:])


def _gemm(node: onnx.NodeProto, given: list[Shape], out: Shape) -> int:
    return math.prod(out) * (given[0][-2] if attribute(node, "transA", 0) else given[0][-1])


def _recurrent(node: onnx.NodeProto, given: list[Shape], out: Shape) -> int:
    steps, sequences = given[0][:2]
    return steps * sequences * (math.prod(given[1]) + math.prod(given[2]))


def _attention(node: onnx.NodeProto, given: list[Shape], out: Shape) -> int | None:
    if len(node.input) > 4:  # keys and values of earlier calls
        return None
    return (math.prod(given[0]) + math.prod(out)) * given[1][-2]


def _einsum(node: onnx.NodeProto, given: list[Shape], out: Shape) -> int | None:
    equation = next(each.s.decode() for each in node.attribute if each.name == "equation").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) == 1:
        return 0  # a sum or a transposition
    if len(terms) > 2 or "." in equation or [len(term) for term in terms] != [len(each) for each in given]:
        return None
    sizes = {
        label: size
        for term, shape in zip(terms, given, strict=True)
        for label, size in zip(term, shape, strict=True)
    }
    return math.prod(sizes.values())


MACS: dict[str, Callable[[Any, list[Shape], Shape], int | None]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "DeformConv": _conv,
    "Einsum": _einsum,
    "FusedMatMul": _gemm,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _gemm,
    "RNN": _recurrent,
}
NEEDED = {"GRU": 3, "LSTM": 3, "RNN": 3, "Attention": 3}
"""Number of inputs on which the MACs of these operators depend. It is two for all others."""


def _macs(node: onnx.NodeProto, network: Network) -> int | None:
    """Multiply-accumulates of one node for the whole batch; None where they are unknown."""
    inside = [each for each in all_nodes([node]) if each is not node]
    if inside:  # the file does not say how often Loop and Scan run, or which branch If takes
        return 0 if all(_has_none(each) for each in inside) else None
    if _has_none(node):
        return 0
    if (
        node.op_type not in MACS
        or node.domain not in ("", MICROSOFT)
        or (node.op_type == "Attention" and node.domain)
    ):
        return None
    recurrent = MACS[node.op_type] is _recurrent  # its first output may be absent
    needed = [*node.input[: NEEDED.get(node.op_type, 2)], node.input[0] if recurrent else node.output[0]]
    if any(name not in network.shapes for name in needed):
        raise without_shape(network, [node])
    given = [network.shapes[name] for name in needed]
    return MACS[node.op_type](node, given[:-1], given[-1])


def _has_none(node: onnx.NodeProto) -> bool:
    if node.op_type in ("If", "Loop", "Scan"):
        return not node.domain  # the nodes inside are counted separately
    if node.domain in ("", "ai.onnx"):
        return node.op_type in WITHOUT_MACS or node.op_type in SAME_SHAPE
    return node.domain == MICROSOFT and node.op_type in SAME_SHAPE
