"""An .onnx file as a torch module, so that torch's profiler and CUDA run the exported file itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dxc.errors import HardwareError
from dxc.hardware.onnx_file import load_onnx


class Node(NamedTuple):
    """A node of a file: what it does, the function of OPERATORS with its attributes, and the names of its tensors."""

    op: str
    run: Callable[..., Any]
    attributes: dict[str, Any]
    inputs: list[str]
    outputs: list[str]


class OnnxModule(nn.Module):
    """Runs the nodes of an ONNX file with torch operators.

    It takes the inputs in the file's order, and returns the output or a tuple of several. Weights are buffers, so
    .cuda() moves them. Shapes, indices and single numbers stay on the CPU, where the operators read them. Reading each
    from a GPU would add a copy and a wait that the network does not have.

    Raises:
        HardwareError: the file cannot be read, or operators are not in OPERATORS; it names all of them.
    """

    def __init__(self, path: Path) -> None:
        from onnx import numpy_helper

        super().__init__()
        graph = load_onnx(path, weights=True).graph
        if missing := sorted({node.op_type for node in graph.node} - set(OPERATORS) - {"Constant"}):
            raise HardwareError(
                f"{path} cannot be run with torch: no {', '.join(missing)} in dxc.hardware.graph. "
                "ONNX Runtime can measure the file without torch: hardware.runtime=onnxruntime profile=none"
            )
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                arrays[node.output[0]] = _constant(_attributes(node))
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        weights = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim]
        self._buffer_of = {name: f"weight{number}" for number, name in enumerate(weights)}
        for name in weights:
            self.register_buffer(self._buffer_of[name], tensors[name])
        self._settings = {name: tensor for name, tensor in tensors.items() if name not in self._buffer_of}
        self._nodes = [
            (
                OPERATORS[node.op_type],
                list(node.input),
                list(node.output),
                _attributes(node) | {"outputs": len(node.output)},
            )
            for node in graph.node
            if node.op_type != "Constant"
        ]
        self._inputs = [tensor.name for tensor in graph.input if tensor.name not in arrays]
        self._outputs = [tensor.name for tensor in graph.output]
        self._ops = [node.op_type for node in graph.node if node.op_type != "Constant"]

    def nodes(self) -> list[Node]:
        """The nodes in the order of the file, without those of constants."""
        return [
            Node(op, run, attributes, inputs, outputs)
            for op, (run, inputs, outputs, attributes) in zip(self._ops, self._nodes, strict=True)
        ]

    def constants(self) -> dict[str, Tensor]:
        """Weights, where .to() has moved them, and settings, by name."""
        return self._settings | {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()}

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of the inputs and of the outputs."""
        return self._inputs, self._outputs

    def forward(self, *images: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Any] = dict(zip(self._inputs, images, strict=True))
        values |= self._settings | {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()}
        for operator, inputs, outputs, attributes in self._nodes:
            result = operator(attributes, *(values[name] if name else None for name in inputs))
            results = result if isinstance(result, list | tuple) else [result]
            values |= dict(zip(outputs, results, strict=False))
        results = tuple(values[name] for name in self._outputs)
        return results[0] if len(results) == 1 else results


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _constant(a: dict[str, Any]) -> np.ndarray:
    """Value of a Constant node: a tensor, or plain numbers (value_int, value_floats, ...)."""
    from onnx import numpy_helper

    if "value" in a:
        return numpy_helper.to_array(a["value"])
    ((kind, value),) = a.items()
    return np.array(value, np.float32 if "float" in kind else np.int64)


def _padded(a: dict[str, Any], x: Tensor, value: float) -> tuple[Tensor, list[int]]:
    """Image and symmetric padding. Uneven padding is done here; even padding is left to the operator."""
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise HardwareError("auto_pad is not supported; export with explicit pads")
    if (top, left) == (bottom, right):
        return x, [top, left]
    return F.pad(x, (left, right, top, bottom), value=value), [0, 0]


def _conv(a: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _padded(a, x, 0.0)
    return F.conv2d(
        x, weight, bias, a.get("strides", [1, 1]), padding, a.get("dilations", [1, 1]), a.get("group", 1)
    )


def _max_pool(a: dict[str, Any], x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    x, padding = _padded(a, x, float("-inf"))
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):  # torch cannot pad that much
        x, padding = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=float("-inf")), [0, 0]
    return F.max_pool2d(
        x, kernel, a.get("strides", [1, 1]), padding, a.get("dilations", [1, 1]), bool(a.get("ceil_mode", 0))
    )


def _average_pool(a: dict[str, Any], x: Tensor) -> Tensor:
    if len(set(a.get("pads", [0]))) > 1 and not a.get("count_include_pad", 0):
        raise HardwareError("AveragePool with uneven pads is not supported")
    x, padding = _padded(a, x, 0.0)
    return F.avg_pool2d(
        x,
        a["kernel_shape"],
        a.get("strides", [1, 1]),
        padding,
        bool(a.get("ceil_mode", 0)),
        bool(a.get("count_include_pad", 0)),
    )


def _gemm(a: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA", 0) else x
    weight = weight if a.get("transB", 0) else weight.T
    if a.get("alpha", 1.0) == 1.0 and a.get("beta", 1.0) == 1.0 and (bias is None or bias.ndim == 1):
        return F.linear(x, weight, bias)
    out = a.get("alpha", 1.0) * F.linear(x, weight)
    return out if bias is None else out + a.get("beta", 1.0) * bias


def _reshape(a: dict[str, Any], x: Tensor, shape: Tensor) -> Tensor:
    sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())]
    return x.reshape(sizes)


@functools.cache
def _indices(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Indices on a device. They are kept, because a copy in every run would make it wait for the host, and a CUDA graph
    cannot capture it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def _slice(
    a: dict[str, Any],
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    along = range(len(starts)) if axes is None else axes.tolist()
    by = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), by, strict=True):
        kept = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(kept.start, kept.stop, step),)]
        else:  # torch has no views with a negative step
            x = x.index_select(axis, _indices(tuple(kept), x.device))
    return x


def _split(a: dict[str, Any], x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = a.get("axis", 0)
    if sizes is not None:
        return torch.split(x, sizes.tolist(), dim=axis)
    return torch.chunk(x, a["outputs"], dim=axis)


def _axes(a: dict[str, Any], axes: Tensor | None) -> list[int]:
    return list(a["axes"]) if "axes" in a else axes.tolist() if axes is not None else []


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(a: dict[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = _axes(a, axes) or list(range(x.ndim))
        return function(x, along, keepdim=bool(a.get("keepdims", 1)))

    return run


def _unsqueeze(a: dict[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    for axis in sorted(_axes(a, axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(a: dict[str, Any], x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze(tuple(_axes(a, axes))) if _axes(a, axes) else x.squeeze()


def _pad(a: dict[str, Any], x: Tensor, pads: Tensor, value: Tensor | None = None) -> Tensor:
    half = len(pads) // 2
    both = [side for axis in reversed(range(half)) for side in (int(pads[axis]), int(pads[axis + half]))]
    return F.pad(
        x, both, mode=a.get("mode", b"constant").decode(), value=0.0 if value is None else float(value)
    )


def _batch_norm(
    a: dict[str, Any], x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, eps=a.get("epsilon", 1e-5))


def _clip(a: dict[str, Any], x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is None and high is None:
        return x
    return torch.clamp(x, None if low is None else low.item(), None if high is None else high.item())


def _gather(a: dict[str, Any], x: Tensor, index: Tensor) -> Tensor:
    axis = a.get("axis", 0)
    if index.ndim == 0:
        return x.select(axis, int(index))
    axis, size = axis % x.ndim, x.shape[axis]
    wanted = index.flatten() % size  # negative ones count from the end
    if wanted.device != x.device:
        wanted = _indices(tuple(wanted.tolist()), x.device)
    return x.index_select(axis, wanted).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _cast(a: dict[str, Any], x: Tensor) -> Tensor:
    from onnx import helper

    return x.to(torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(a["to"]))).dtype)


def _divide(a: dict[str, Any], x: Tensor, y: Tensor) -> Tensor:
    """Division as in ONNX, where integers give an integer."""
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *xs: torch.cat(xs, dim=a["axis"]),
    "Conv": _conv,
    "Div": _divide,
    "Flatten": lambda a, x: x.flatten(a.get("axis", 1)) if a.get("axis", 1) else x.reshape(1, -1),
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: F.adaptive_avg_pool2d(x, 1),
    "GlobalMaxPool": lambda a, x: F.adaptive_max_pool2d(x, 1),
    "HardSigmoid": lambda a, x: torch.clamp(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0, 1),
    "HardSwish": lambda a, x: F.hardswish(x),
    "Identity": lambda a, x: x,
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "MatMul": lambda a, x, y: torch.matmul(x, y),
    "MaxPool": _max_pool,
    "Min": lambda a, *xs: functools.reduce(torch.minimum, xs),
    "Mul": lambda a, x, y: x * y,
    "Pad": _pad,
    "Range": lambda a, start, limit, delta: torch.arange(
        start.item(), limit.item(), delta.item(), dtype=start.dtype
    ),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "Relu": lambda a, x: F.relu(x),
    "Reshape": _reshape,
    "Shape": lambda a, x: torch.tensor(x.shape),
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "Slice": _slice,
    "Softmax": lambda a, x: F.softmax(x, dim=a.get("axis", -1)),
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(*a.get("perm", reversed(range(x.ndim)))),
    "Unsqueeze": _unsqueeze,
}
