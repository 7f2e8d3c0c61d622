"""Small exported networks for these tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from dxc.deploy.export import export_onnx
from dxc.models.resnet import ResNet


def exported_resnet(
    path: Path, *, in_channels: int = 5, size: int = 32, trained: bool = True, **knobs: Any
) -> Path:
    """A ResNet with batch norms as after training. Without `trained` they are all alike."""
    torch.manual_seed(0)
    model = ResNet(in_channels, 2, **{"width": 8, **knobs})
    for module in model.modules():
        if trained and isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    export_onnx(model, path, in_channels=in_channels, size=size)
    return path


def one_operator(
    path: Path, op: str, *, shape: list[Any], weights: dict[str, list[int]] | None = None, **attributes: Any
) -> Path:
    """A network of a single node on input `image`. Its weights are ones, given by name and shape."""
    weights = weights or {}
    node = helper.make_node(op, ["image", *weights], ["scores"], name=op, **attributes)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)
    ones = [numpy_helper.from_array(np.ones(dims, np.float32), name) for name, dims in weights.items()]
    graph = helper.make_graph([node], "one", [image], [scores], ones)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
