"""Export: published sizes, one file, dynamic batch, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dxc.errors import ExportError
from dxc.export import export_onnx
from dxc.models.resnet import ResNet


def _trained_like(model: nn.Module) -> nn.Module:
    """Random batch-norm statistics: an untrained network folds into equal biases, a trained one does not."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    ("channels", "knobs", "published_mb"),
    [
        (5, {}, 11.18),
        (7, {}, 11.18),
        (5, {"kernel": 7, "padding": 3, "pool": "max", "width": 64}, 44.71),
        (7, {"kernel": 7, "padding": 3, "pool": "max", "width": 64}, 44.73),
    ],
)
def test_published_sizes(tmp_path: Path, channels: int, knobs: dict, published_mb: float) -> None:
    model = _trained_like(ResNet(channels, **knobs))
    exported = export_onnx(model, tmp_path / "model.onnx", in_channels=channels, size=100)
    assert exported.onnx_mb == pytest.approx(published_mb, rel=1e-3)
    assert exported.onnx_mb == (tmp_path / "model.onnx").stat().st_size / 1e6
    assert exported.max_relative_error < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # weights inside, no side file


def test_the_file_computes_the_same_for_any_batch(tmp_path: Path) -> None:
    model = _trained_like(ResNet(5, width=8))
    path = export_onnx(model, tmp_path / "m.onnx", in_channels=5, size=32).path
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 3, 8):
        chips = torch.rand(batch, 5, 32, 32)
        with torch.inference_mode():
            expected = model(chips).numpy()
        (scores,) = session.run(["scores"], {"image": chips.numpy()})
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_contents(tmp_path: Path) -> None:
    graph = onnx.load(
        export_onnx(_trained_like(ResNet(5, width=8)), tmp_path / "m.onnx", in_channels=5, size=32).path
    )
    assert graph.opset_import[0].version >= 17
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.graph.initializer)
    assert not any(node.doc_string or node.metadata_props for node in graph.graph.node)
    assert not graph.metadata_props
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert str(Path(__file__).parent.parent).encode() not in graph.SerializeToString()
    kinds = [node.op_type for node in graph.graph.node]
    assert "BatchNormalization" not in kinds  # folded into the convolutions
    assert kinds.count("Conv") == 20


class _Noisy(nn.Module):
    """A layer that ignores eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) + torch.rand(x.shape[:2])


def test_a_network_that_exports_to_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="differs from the trained one"):
        export_onnx(_Noisy(), tmp_path / "m.onnx", in_channels=5, size=8)
    assert list(tmp_path.iterdir()) == []
