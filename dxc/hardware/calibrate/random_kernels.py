"""Networks of no architecture: random kernels in a row, so that predictors see sizes that no architecture has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

OPSET = 17
Tensor = tuple[str, int, int]
"""A tensor of a graph: its name, channels, and height = width."""


def draw(rng: np.random.Generator) -> dict[str, Any]:
    """Kernels in a row. Sizes after nn-Meter's priors: channels log-uniform, common input sizes."""
    layers: list[list[Any]] = []
    channels, size = (
        int(np.exp(rng.uniform(np.log(8), np.log(128)))),
        _pick(rng, [28, 32, 50, 56, 64, 100, 112]),
    )
    first = [_pick(rng, [3, 5, 7]), channels, size]
    for _ in range(int(rng.integers(5, 11))):
        op = _pick(rng, ["conv"] * 5 + ["dwconv", "residual", "maxpool", "avgpool", "concat", "relu"])
        limit = min(512.0, 4e8 / (channels * size * size * 9) + 16)  # no layer over about 5 ms
        wide = int(np.exp(rng.uniform(np.log(8), np.log(max(limit, 16)))))
        wide = wide if rng.random() < 0.3 else max(8, wide // 8 * 8)
        kernel, stride = _pick(rng, [1, 3, 3, 5, 7]), _pick(rng, [1, 1, 2])
        layers.append([op, wide, kernel if op != "avgpool" else 3, stride, bool(rng.random() < 0.7)])
        if op == "conv":
            channels = wide
        if op in ("conv", "dwconv", "maxpool", "avgpool") and stride == 2:
            size = max(1, size // 2)
        if op == "concat":
            channels *= 2
        if size < 7:
            break
    return {"first": first, "layers": layers, "features": int(rng.integers(2, 512))}


def onnx_model(spec: dict[str, Any]) -> onnx.ModelProto:
    """The network that a drawn dict describes."""
    in_channels, channels, size = spec["first"]
    graph = Graph(in_channels, size)
    x = graph.conv(graph.image, channels, 3, relu=True)
    for op, wide, kernel, stride, relu in spec["layers"]:
        if op == "conv":
            x = graph.conv(x, wide, kernel, stride, relu=relu)
        elif op == "dwconv":
            x = graph.conv(x, x[1], max(kernel, 3), stride, depthwise=True, relu=relu)
        elif op == "residual":
            x = graph.relu(graph.add(graph.conv(x, x[1], kernel), x))
        elif op in ("maxpool", "avgpool"):
            x = graph.pool(
                x, max(2, min(kernel, 3)), stride, 1, op={"m": "MaxPool", "a": "AveragePool"}[op[0]]
            )
        elif op == "concat":
            x = graph.concat([graph.conv(x, x[1], 1, relu=True), graph.conv(x, x[1], 3, relu=True)])
        else:
            x = graph.relu(graph.add(x, x))
    y = graph.flatten(graph.global_pool(x))
    return graph.model([graph.linear(graph.linear(y, spec["features"], relu=True), 2)])


class Graph:
    """An ONNX graph that grows node by node. Nodes are called n0, n1, ... and their outputs t0, t1, ..."""

    def __init__(self, in_channels: int, size: int) -> None:
        self.image = ("image", in_channels, size)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._noise = np.random.default_rng(0).normal(size=4096).astype(np.float32)

    def conv(
        self,
        x: Tensor,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        padding: int | None = None,
        depthwise: bool = False,
        relu: bool = False,
    ) -> Tensor:
        name, channels, size = x
        padding = kernel // 2 if padding is None else padding
        fan_in = (1 if depthwise else channels) * kernel * kernel
        weight = self._weight((out_channels, fan_in // kernel**2, kernel, kernel), fan_in)
        out = self._node(
            "Conv",
            [name, weight, self._weight((out_channels,), 1)],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
            group=channels if depthwise else 1,
        )
        y = (out, out_channels, (size + 2 * padding - kernel) // stride + 1)
        return self.relu(y) if relu else y

    def relu(self, x: Tensor) -> Tensor:
        return (self._node("Relu", [x[0]]), *x[1:])

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return (self._node("Add", [x[0], y[0]]), *x[1:])

    def pool(self, x: Tensor, kernel: int, stride: int, padding: int = 0, op: str = "MaxPool") -> Tensor:
        out = self._node(op, [x[0]], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)
        return out, x[1], (x[2] + 2 * padding - kernel) // stride + 1

    def concat(self, parts: list[Tensor]) -> Tensor:
        out = self._node("Concat", [name for name, _, _ in parts], axis=1)
        return out, sum(channels for _, channels, _ in parts), parts[0][2]

    def global_pool(self, x: Tensor) -> Tensor:
        return self._node("GlobalAveragePool", [x[0]]), x[1], 1

    def flatten(self, x: Tensor) -> Tensor:
        return self._node("Flatten", [x[0]], axis=1), x[1] * x[2] * x[2], 1

    def linear(self, x: Tensor, features: int, *, relu: bool = False) -> Tensor:
        weight = self._weight((features, x[1]), x[1])
        out = (self._node("Gemm", [x[0], weight, self._weight((features,), 1)], transB=1), features, 1)
        return self.relu(out) if relu else out

    def model(self, outputs: list[Tensor]) -> onnx.ModelProto:
        """The finished graph: input `image` (1, channels, size, size), outputs of linear layers (1, features)."""
        from onnx import TensorProto, helper

        _, channels, size = self.image
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, size, size])
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name, width, _ in outputs
        ]
        graph = helper.make_graph(self._nodes, "random_kernels", [image], ends, self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        number = len(self._nodes)
        self._nodes.append(helper.make_node(op, inputs, [f"t{number}"], name=f"n{number}", **attributes))
        return f"t{number}"

    def _weight(self, shape: tuple[int, ...], fan_in: int) -> str:
        from onnx import numpy_helper

        # scaled as He et al. 2015 do, so that no activation becomes denormal (slow) or infinite
        values = np.resize(self._noise, shape) * np.float32((2 / fan_in) ** 0.5)
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name


def _pick(rng: np.random.Generator, values: list[Any]) -> Any:
    return values[int(rng.integers(len(values)))]
