"""A dense pass of a network: it looks at a whole rectangle at once and says where chips are worth it.

A network that ends in convolutions, a global average and one linear layer can slide: the average becomes one over as
many features as a chip has, and the linear layer a convolution of 1 x 1. So features are computed once instead of once
a window. The answers are no exact copy of those of chips. A chip is padded with zeros at its border, and with a
receptive field larger than the chip the padding reaches every feature. They rank places nearly alike, but a threshold
has to be fitted for them, on regions that the network was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.data.bands import stack_channels
from dxc.deploy.metadata import Metadata
from dxc.deploy.predictor import PROVIDERS
from dxc.errors import ConfigError, DataError, ExportError, first_line

if TYPE_CHECKING:
    import onnx

    from dxc.mapping.ground import Ground

MARGIN_M = 112
"""Ground beyond the windows of a tile that a dense pass sees: half the receptive field of a ResNet-18 (215 pixels). So
the zeros around the rectangle reach no answer that is used."""
WINDOW_INDEPENDENT = ("fixed", "none")
"""Normalisations in which the value of a pixel does not depend on the window that shows it."""


class Screen:
    """The dense pass of an exported network.

    Attributes:
        stride: between two answers, in pixels: the network's total stride.
        threshold: least log-odds of a place that is looked at with chips.

    Args:
        path: of the exported file.
        metadata: of the file.
        size: edge of its windows in pixels.
        provider: cpu or cuda.
        threads: of one operator.

    Raises:
        ConfigError: the network cannot be run densely; the message says what to do.
        ExportError: the file cannot be run.
    """

    def __init__(self, path: Path, metadata: Metadata, size: int, *, provider: str, threads: int) -> None:
        import onnx
        import onnxruntime

        if metadata.normalise not in WINDOW_INDEPENDENT:
            raise ConfigError(
                f"mode=dense: the network was trained with data.normalise={metadata.normalise}, where the value of a "
                "pixel depends on the chip around it: it cannot look at a whole tile at once. Without fit and "
                "screen_logit, give mode=chips, or mode=corridor and roads=FILE; or train it with data.normalise=fixed."
            )
        model, self.stride = dense_network(onnx.load(path), size, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=[PROVIDERS[provider]]
            )
        except Exception as error:  # ONNX Runtime has an error class for each kind of fault
            raise ExportError(f"{path}: ONNX Runtime cannot run it densely: {first_line(error)}") from error
        self._metadata, self._size = metadata, size
        self.threshold = -math.inf

    def margins(self, left: int, top: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Pixels to read west, north, east and south of the windows of a tile, so that answers lie on one lattice of
        the CRS and no border reaches them.

        Args:
            left, top: of the rectangle of all windows, metres.
            width, height: of it, pixels.
        """
        west = MARGIN_M + (left - MARGIN_M) % self.stride
        north = MARGIN_M + (-top - MARGIN_M) % self.stride
        east = MARGIN_M + -(width + west + MARGIN_M) % self.stride
        south = MARGIN_M + -(height + north + MARGIN_M) % self.stride
        return west, north, east, south

    def log_odds(self, bands: Mapping[str, np.ndarray]) -> np.ndarray:
        """Log-odds (rows, columns) of a crossing, at every `stride` pixels of a rectangle of raw bands (H, W). Answer
        (0, 0) is that of the window in its upper left corner."""
        said = self._metadata
        raw = dict(bands)
        image = stack_channels(
            raw.pop("dem", None), raw, said.channels,
            normalise=said.normalise, repair=said.repair, mean=said.mean or (), std=said.std or (),
        )  # fmt: skip
        scores = self._session.run(None, {"image": image[None]})[0][0]
        return np.asarray(scores[-1] - scores[0])

    def passes(
        self, bands: Mapping[str, np.ndarray], left: int, top: int, x: np.ndarray, y: np.ndarray
    ) -> np.ndarray:
        """Which windows are looked at: those with an answer over the threshold less than `stride` away on both axes.

        Args:
            bands: raw bands (H, W) of a rectangle with its margins.
            left, top: of the rectangle, metres.
            x: of the centres of windows (columns,), metres.
            y: likewise, (rows,).
        """
        good = self.log_odds(bands) >= self.threshold
        half = self._size // 2 + 0.5
        column, row = (x - left - half) / self.stride, (top - half - y) / self.stride
        passed = np.zeros((len(y), len(x)), bool)
        for rows in (np.floor(row), np.ceil(row)):
            for columns in (np.floor(column), np.ceil(column)):
                r = np.clip(rows.astype(int), 0, good.shape[0] - 1)
                c = np.clip(columns.astype(int), 0, good.shape[1] - 1)
                passed |= good[np.ix_(r, c)]
        return passed

    def best_near(self, ground: Ground, x: float, y: float) -> float:
        """Greatest log-odds of the answers that let windows at a place be looked at.

        Args:
            ground: rasters, open.
            x: of the place, metres.
            y: likewise.
        """
        half = self._size // 2
        left, top = math.floor(x) - half, math.ceil(y) + half
        west, north, east, south = self.margins(left, top, self._size, self._size)
        bands, _ = ground.read(left - west, top + north, self._size + west + east, self._size + north + south)
        answers = self.log_odds(bands)
        column, row = west / self.stride, north / self.stride
        rows = np.unique([math.floor(row), math.ceil(row)])
        columns = np.unique([math.floor(column), math.ceil(column)])
        return float(answers[np.ix_(rows, columns)].max())


def fitted_threshold(best: np.ndarray, recall: float, margin: float) -> float:
    """The threshold that keeps a share of the crossings of a training region, lowered by a margin.

    A network is surer of ground that it was trained on. On ground that it has not seen, its answers at crossings spread
    wider about their median, so a threshold that keeps 99 % of them here would lose more there.

    Args:
        best: (n,) greatest log-odds of a dense pass near each crossing of a training region.
        recall: the share to keep.
        margin: how much lower it lies, as a share of the distance from there to the median of `best`.

    Raises:
        DataError: there is no crossing.
    """
    if not len(best):
        raise DataError("fit: no crossing lies in its dem and photo. Give those of that region.")
    kept = math.ceil(recall * len(best) - 1e-9)  # 0.9 x 100 is not 90 in binary
    least = float(np.sort(best)[len(best) - kept])
    return least - margin * max(0.0, float(np.median(best)) - least)


def dense_network(model: onnx.ModelProto, size: int, path: Path) -> tuple[onnx.ModelProto, int]:
    """The network as one that takes any rectangle, and its total stride.

    Its output is float32 (1, classes, rows, columns).

    Args:
        model: the exported network.
        size: edge of its images in pixels.
        path: of the file, for messages.

    Raises:
        ConfigError: it does not end in a global average and one linear layer.
    """
    import onnx
    from onnx import helper, numpy_helper, shape_inference

    other = "Without fit and screen_logit, give mode=chips, or mode=corridor and roads=FILE."
    graph = shape_inference.infer_shapes(model).graph
    made_by = {output: node for node in graph.node for output in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    pools = [node for node in graph.node if node.op_type == "GlobalAveragePool"]
    chain: list[Any] = []
    if len(pools) == 1:
        name = pools[0].output[0]
        while len(users.get(name, [])) == 1:
            chain.append(users[name][0])
            name = chain[-1].output[0]
    kinds = [node.op_type for node in chain]
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    plain = len(chain) == 2 and kinds[0] in ("Flatten", "Reshape", "Squeeze") and kinds[1] == "Gemm"
    if not plain or list(chain[-1].output) != ["scores"] or chain[1].input[1] not in weights:
        raise ConfigError(
            f"mode=dense: {path.name} does not end in a global average and one linear layer"
            f"{' of scores' if plain else ''}, so it cannot slide over a tile. {other}"
        )
    pool, gemm = pools[0], chain[1]
    shapes = {each.name: [d.dim_value for d in each.type.tensor_type.shape.dim] for each in graph.value_info}
    features = shapes.get(pool.input[0], [0, 0, 0, 0])[2:]
    stride, node = 1, made_by.get(pool.input[0])
    while node is not None:
        for attribute in node.attribute:
            if attribute.name == "strides" and node.op_type in ("Conv", "MaxPool", "AveragePool"):
                stride *= attribute.ints[0]
        node = next((made_by[name] for name in node.input if name in made_by), None)
    if len(features) != 2 or features[0] < 1 or features[0] != features[1]:
        raise ConfigError(f"mode=dense: the features of {path.name} have no known size. {other}")
    attributes = {each.name: helper.get_attribute_value(each) for each in gemm.attribute}
    matrix = weights[gemm.input[1]].astype(np.float32) * attributes.get("alpha", 1.0)
    matrix = matrix if attributes.get("transB", 0) else matrix.T
    parts = [numpy_helper.from_array(np.ascontiguousarray(matrix[:, :, None, None]), "dense.weight")]
    inputs = ["dense.mean", "dense.weight"]
    if len(gemm.input) > 2:
        bias = weights[gemm.input[2]].astype(np.float32) * attributes.get("beta", 1.0)
        parts.append(numpy_helper.from_array(np.ascontiguousarray(bias), "dense.bias"))
        inputs.append("dense.bias")
    gone = {id(each) for each in (pool, *chain)}
    nodes = [each for each in graph.node if id(each) not in gone]
    nodes += [
        helper.make_node(
            "AveragePool", [pool.input[0]], ["dense.mean"], kernel_shape=features, strides=[1, 1]
        ),
        helper.make_node("Conv", inputs, ["scores"], kernel_shape=[1, 1]),
    ]
    kept = [each for each in graph.initializer if each.name not in set(gemm.input)]
    channels = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    kind = onnx.TensorProto.FLOAT
    dense = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("image", kind, ["batch", channels, "height", "width"])],
        [helper.make_tensor_value_info("scores", kind, ["batch", len(matrix), "rows", "columns"])],
        [*kept, *parts],
    )
    made = helper.make_model(dense, opset_imports=list(model.opset_import))
    made.ir_version = model.ir_version
    return made, stride
