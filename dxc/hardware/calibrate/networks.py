"""Untrained networks that calibration measures: the real ones, exported as after training, and random kernels.

A network is described by a plain dict (its spec), so that a calibration can be recorded and resumed: its family (a
network of dxc.models.registry, or random_kernels), its knobs, `size`, the edge of its image in pixels, and `quantised`,
true for static int8. Weights are
random: latency on a CPU does not depend on their values. Nodes are called n0, n1, ... and their outputs t0, t1, ..., so
that a runtime's profile can be read back.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dxc.config.build import build
from dxc.hardware.calibrate import random_kernels
from dxc.models.registry import NETWORKS

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import nn

Spec = dict[str, Any]

RANDOM_KERNELS = "random_kernels"
"""The family of networks that are of no architecture."""
RANDOM_KERNELS_WEIGHT = 3.0
QUANTISED = "quantised"


def families() -> dict[str, float]:
    """The families that calibration draws from, and how often: weights, beside each other's."""
    weights = {name: network.calibration.weight for name, network in NETWORKS.items() if network.calibration}
    return {**weights, RANDOM_KERNELS: RANDOM_KERNELS_WEIGHT}


def draw(family: str, rng: np.random.Generator) -> Spec:
    """A random member of a family."""
    if family == RANDOM_KERNELS:
        return {"family": family, **random_kernels.draw(rng)}
    calibration = NETWORKS[family].calibration
    if calibration is None:
        raise ValueError(f"{family} is not drawn for calibration")
    return {"family": family, **calibration.draw(rng)}


def module(spec: Spec) -> nn.Module:
    """The network that a spec describes, with the weights of a fresh one and biases as training leaves them.

    Biases that are equal, as fresh ones are, would export to another graph: the file shares them.
    """
    import torch
    from torch import nn

    knobs = {key: value for key, value in spec.items() if key not in ("family", "size", QUANTISED)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build({"_target_": NETWORKS[spec["family"]].target, **knobs}, "model")
        for each in network.modules():
            if isinstance(each, nn.BatchNorm2d) and each.running_var is not None:
                nn.init.uniform_(each.running_var, 0.5, 1.5)
        for parameter in network.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, mean=1.0, std=0.1)
    return network


def onnx_model(spec: Spec) -> onnx.ModelProto:
    """The network that a spec describes as dxc exports it, for one image. Where it is quantised, nodes and outputs of
    the file in float32 keep their names."""
    return _quantised(_float_model(spec)) if spec.get(QUANTISED) else _float_model(spec)


def _quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Static int8, calibrated on one random image: latency does not depend on the scales."""
    import numpy as np
    import onnx

    from dxc.compress.quantise import quantise

    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantise(source, target, "static", np.random.default_rng(0).random(shape, dtype=np.float32))
        return onnx.load(target)


def _float_model(spec: Spec) -> onnx.ModelProto:
    import onnx

    from dxc.deploy.export import export_onnx

    if spec["family"] == RANDOM_KERNELS:
        return random_kernels.onnx_model(spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(module(spec), path, in_channels=spec["in_channels"], size=spec["size"], check=False)
        model = onnx.load(path)
    _number(model.graph)
    return model


def _number(graph: onnx.GraphProto) -> None:
    """Name nodes n0, n1, ... and their outputs t0, t1, ..., and fix the batch to 1."""
    names: dict[str, str] = {}
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        names |= dict.fromkeys(node.output, f"t{number}")
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    del graph.value_info[:]
    for each in graph.output:
        each.name = names[each.name]
    for each in (*graph.input, *graph.output):
        each.type.tensor_type.shape.dim[0].dim_value = 1
