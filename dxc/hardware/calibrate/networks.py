"""Untrained networks as ONNX graphs, drawn from the spaces that dxc searches: what calibration measures.

A sketch is described by a plain dict (its spec), so that a calibration can be recorded and resumed. Weights
are random: latency on a CPU does not depend on their values. Nodes are called n0, n1, ... and their outputs
t0, t1, ..., so that a runtime's profile can be read back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

OPSET = 17
Spec = dict[str, Any]

SPP_FEATURES = (128, 256, 512, 1024, 2048, 4096, 8192)
# MobileNet-v1 (Howard et al. 2017, arXiv 1704.04861, table 1): channels and stride of each separable block
MOBILENET = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *([(512, 1)] * 5),
    (1024, 2),
    (1024, 1),
)


class Sketch:
    """A network being drawn; a tensor is (name, channels, height = width)."""

    def __init__(self, in_channels: int, size: int) -> None:
        self.image = ("image", in_channels, size)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._noise = np.random.default_rng(0).normal(size=4096).astype(np.float32)

    def conv(
        self,
        x: tuple[str, int, int],
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        padding: int | None = None,
        depthwise: bool = False,
        relu: bool = False,
    ) -> tuple[str, int, int]:
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

    def relu(self, x: tuple[str, int, int]) -> tuple[str, int, int]:
        return (self._node("Relu", [x[0]]), *x[1:])

    def add(self, x: tuple[str, int, int], y: tuple[str, int, int]) -> tuple[str, int, int]:
        return (self._node("Add", [x[0], y[0]]), *x[1:])

    def pool(
        self, x: tuple[str, int, int], kernel: int, stride: int, padding: int = 0, op: str = "MaxPool"
    ) -> tuple[str, int, int]:
        out = self._node(op, [x[0]], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)
        return out, x[1], (x[2] + 2 * padding - kernel) // stride + 1

    def bins(self, x: tuple[str, int, int], level: int) -> tuple[str, int, int]:
        """One level of a spatial pyramid, with the operators of dxc.models.sppnet.pool_fixed_size."""
        from dxc.models.sppnet import windows

        length, stride, pairs = windows(x[2], level)
        y = self.pool(x, length, stride)
        if not pairs:
            return y
        for axis in (2, 3):
            y = (self._node("Gather", [y[0], self._numbers(pairs)], axis=axis), x[1], len(pairs))
        return self.pool(y, 2, 2)

    def concat(self, parts: list[tuple[str, int, int]]) -> tuple[str, int, int]:
        out = self._node("Concat", [name for name, _, _ in parts], axis=1)
        return out, sum(channels for _, channels, _ in parts), parts[0][2]

    def global_pool(self, x: tuple[str, int, int]) -> tuple[str, int, int]:
        return self._node("GlobalAveragePool", [x[0]]), x[1], 1

    def flatten(self, x: tuple[str, int, int]) -> tuple[str, int, int]:
        return self._node("Flatten", [x[0]], axis=1), x[1] * x[2] * x[2], 1

    def linear(self, x: tuple[str, int, int], features: int, *, relu: bool = False) -> tuple[str, int, int]:
        weight = self._weight((features, x[1]), x[1])
        out = (self._node("Gemm", [x[0], weight, self._weight((features,), 1)], transB=1), features, 1)
        return self.relu(out) if relu else out

    def model(self, outputs: list[tuple[str, int, int]]) -> onnx.ModelProto:
        """The finished graph: input `image` (1, channels, size, size), outputs of linear layers (1, features)."""
        from onnx import TensorProto, helper

        _, channels, size = self.image
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, size, size])
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name, width, _ in outputs
        ]
        graph = helper.make_graph(self._nodes, "sketch", [image], ends, self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        number = len(self._nodes)
        self._nodes.append(helper.make_node(op, inputs, [f"t{number}"], name=f"n{number}", **attributes))
        return f"t{number}"

    def _numbers(self, values: list[int]) -> str:
        from onnx import numpy_helper

        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _weight(self, shape: tuple[int, ...], fan_in: int) -> str:
        from onnx import numpy_helper

        # scaled as He et al. 2015 do, so that no activation becomes denormal (slow) or infinite
        values = np.resize(self._noise, shape) * np.float32((2 / fan_in) ** 0.5)
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values, name))
        return name


def build(spec: Spec) -> onnx.ModelProto:
    """The network that a spec describes."""
    return FAMILIES[spec["family"]][1](spec)


def draw(family: str, rng: np.random.Generator) -> Spec:
    """A random member of a family: 'resnet', 'sppnet', 'mobilenet' or 'mixed'."""
    return {"family": family, **FAMILIES[family][0](rng)}


def _pick(rng: np.random.Generator, values: Any) -> Any:
    value = values[int(rng.integers(len(values)))]
    return value.item() if isinstance(value, np.generic) else value


def _draw_resnet(rng: np.random.Generator) -> Spec:
    # Four of five lie in the published space (doi 10.1145/3624062.3624258, table 2); the rest around it.
    published = rng.random() < 0.8
    pool = _pick(rng, ["none", "max"])
    return {
        "in_channels": _pick(rng, [5, 7] if published else [3, 4, 5, 7]),
        "size": 100 if published else _pick(rng, range(48, 129, 4)),
        "kernel": _pick(rng, [3, 5] if published else [3, 5, 7]),
        "stride": _pick(rng, [1, 2]),
        "padding": _pick(rng, [1, 2, 3]),
        "pool": pool,
        "pool_kernel": _pick(rng, [2, 3]),
        "pool_stride": _pick(rng, [1, 2]),
        "width": _pick(rng, [32, 48, 64] if published else range(16, 81, 8)),
        "blocks": [2, 2, 2, 2] if published else [_pick(rng, [1, 2, 3]) for _ in range(4)],
    }


def _resnet(spec: Spec) -> onnx.ModelProto:
    sketch = Sketch(spec["in_channels"], spec["size"])
    width = spec["width"]
    x = sketch.conv(sketch.image, width, spec["kernel"], spec["stride"], padding=spec["padding"], relu=True)
    if spec["pool"] == "max":
        x = sketch.pool(x, spec["pool_kernel"], spec["pool_stride"], padding=1)
    for stage, depth in enumerate(spec["blocks"]):
        for block in range(depth):
            channels, stride = width * 2**stage, 2 if stage and not block else 1
            shortcut = x
            if stride != 1 or x[1] != channels:
                shortcut = sketch.conv(x, channels, 1, stride)
            y = sketch.conv(x, channels, 3, stride, relu=True)
            y = sketch.conv(y, channels, 3)
            x = sketch.relu(sketch.add(y, shortcut))
    return sketch.model([sketch.linear(sketch.flatten(sketch.global_pool(x)), 2)])


def _draw_sppnet(rng: np.random.Generator) -> Spec:
    # doi 10.1145/3624062.3624260; 100 pixels leave 12 x 12 features: 1 to 4 bins divide them, 5 do not
    return {
        "in_channels": _pick(rng, [3, 4, 5, 7]),
        "size": 100 if rng.random() < 0.7 else _pick(rng, [48, 64, 80, 96, 128]),
        "kernel": _pick(rng, [1, 3, 5, 7, 9]),
        "level": _pick(rng, [1, 2, 3, 4, 5]),
        "features": [_pick(rng, SPP_FEATURES) for _ in range(_pick(rng, [1, 2]))],
    }


def _sppnet(spec: Spec) -> onnx.ModelProto:
    sketch = Sketch(spec["in_channels"], spec["size"])
    x = sketch.image
    for channels, kernel in ((64, spec["kernel"]), (128, 3), (256, 3)):
        x = sketch.pool(sketch.conv(x, channels, kernel, relu=True), 2, 2)
    y = sketch.concat([sketch.flatten(sketch.bins(x, level)) for level in (spec["level"], 2, 1)])
    for features in spec["features"]:
        y = sketch.linear(y, features, relu=True)
    return sketch.model([sketch.linear(y, 1), sketch.linear(y, 4)])


def _draw_mobilenet(rng: np.random.Generator) -> Spec:
    return {
        "in_channels": _pick(rng, [3, 5, 7]),
        "size": _pick(rng, [32, 64, 96, 100, 128]),
        "stride": _pick(rng, [1, 2]),
        "width": _pick(rng, [0.25, 0.5, 0.75, 1.0]),
        "classes": _pick(rng, [2, 10]),
    }


def _mobilenet(spec: Spec) -> onnx.ModelProto:
    sketch = Sketch(spec["in_channels"], spec["size"])
    x = sketch.conv(sketch.image, int(32 * spec["width"]), 3, spec["stride"], relu=True)
    for channels, stride in MOBILENET:
        x = sketch.conv(x, x[1], 3, stride, depthwise=True, relu=True)
        x = sketch.conv(x, int(channels * spec["width"]), 1, relu=True)
    return sketch.model([sketch.linear(sketch.flatten(sketch.global_pool(x)), spec["classes"])])


def _draw_mixed(rng: np.random.Generator) -> Spec:
    """Any kernels in a row, sizes after nn-Meter's priors: channels log-uniform, common input sizes."""
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


def _mixed(spec: Spec) -> onnx.ModelProto:
    in_channels, channels, size = spec["first"]
    sketch = Sketch(in_channels, size)
    x = sketch.conv(sketch.image, channels, 3, relu=True)
    for op, wide, kernel, stride, relu in spec["layers"]:
        if op == "conv":
            x = sketch.conv(x, wide, kernel, stride, relu=relu)
        elif op == "dwconv":
            x = sketch.conv(x, x[1], max(kernel, 3), stride, depthwise=True, relu=relu)
        elif op == "residual":
            x = sketch.relu(sketch.add(sketch.conv(x, x[1], kernel), x))
        elif op in ("maxpool", "avgpool"):
            x = sketch.pool(
                x, max(2, min(kernel, 3)), stride, 1, op={"m": "MaxPool", "a": "AveragePool"}[op[0]]
            )
        elif op == "concat":
            x = sketch.concat([sketch.conv(x, x[1], 1, relu=True), sketch.conv(x, x[1], 3, relu=True)])
        else:
            x = sketch.relu(sketch.add(x, x))
    y = sketch.flatten(sketch.global_pool(x))
    return sketch.model([sketch.linear(sketch.linear(y, spec["features"], relu=True), 2)])


FAMILIES = {
    "resnet": (_draw_resnet, _resnet),
    "sppnet": (_draw_sppnet, _sppnet),
    "mobilenet": (_draw_mobilenet, _mobilenet),
    "mixed": (_draw_mixed, _mixed),
}
