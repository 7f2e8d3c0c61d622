"""Export: published sizes, one file, a dynamic batch, and the same numbers as torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dxc.deploy.export import ANY_SIZES, EXAMPLE_SIZE, count_macs, count_params, export_any_size, export_onnx
from dxc.errors import ExportError
from dxc.models.resnet import ResNet
from dxc.models.sppnet import SppNet


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
    assert str(Path(__file__).parents[2]).encode() not in graph.SerializeToString()
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


SPP_SIZES = [(100, 100), (64, 64), (96, 128), (37, 53), (16, 16)]


def _sppnet(level: int) -> SppNet:
    """Biases are those of a trained network (the file would share equal ones), and logits are not near 0."""
    torch.manual_seed(level)
    model = SppNet(3, level=level, features=16).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    nn.init.ones_(model.presence.bias)
    return model


def _assert_same(path: Path, model: nn.Module, *shape: int) -> None:
    """ONNX Runtime's outputs equal torch's to 1e-4 of the largest value of each."""
    images = torch.randn(*shape)
    with torch.inference_mode():
        expected = model(images)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for name, theirs in expected._asdict().items():
        (ours,) = session.run([name], {"image": images.numpy()})
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("size", SPP_SIZES)
@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_every_pyramid_exports_at_every_size(level: int, size: tuple[int, int], tmp_path: Path) -> None:
    model = _sppnet(level)
    exported = export_onnx(
        model, tmp_path / "m.onnx", in_channels=3, size=size[0] if size[0] == size[1] else size
    )
    assert exported.max_relative_error < 1e-4
    for batch in (1, 4):
        _assert_same(exported.path, model, batch, 3, *size)
    graph = onnx.load(exported.path).graph
    # one MaxPool for each level that lies evenly on the features, here where it divides them; equal ones are shared
    if all(side // 8 % level == 0 for side in size):
        kinds = {node.op_type for node in graph.node}
        assert kinds == {
            "Conv",
            "Relu",
            "MaxPool",
            "Flatten",
            "Concat",
            "Gemm",
            "Sigmoid",
            "Constant",
            "Squeeze",
        }
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def _sizes(tensor: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]


def test_several_outputs_have_their_names(tmp_path: Path) -> None:
    path = export_onnx(_sppnet(4), tmp_path / "m.onnx", in_channels=3, size=(32, 48)).path
    graph = onnx.load(path).graph
    assert {tensor.name: _sizes(tensor) for tensor in [*graph.input, *graph.output]} == {
        "image": ["batch", 3, 32, 48],
        "presence": ["batch"],
        "box": ["batch", 4],
    }


@pytest.mark.long
@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_one_file_for_images_of_any_size(level: int, tmp_path: Path) -> None:
    model = _sppnet(level)
    exported = export_any_size(model, tmp_path / "m.onnx", in_channels=3)
    assert exported.max_relative_error < 1e-4
    for size in (*ANY_SIZES, (19, 90), (41, 16)):
        for batch in (1, 3):
            _assert_same(exported.path, model, batch, 3, *size)
    graph = onnx.load(exported.path)
    assert _sizes(graph.graph.input[0]) == ["batch", 3, "height", "width"]
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 17)]  # standard operators
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    # the switch is back: the next file is one of plain pools again
    assert not model.pyramid.any_size
    fixed = onnx.load(export_onnx(model, tmp_path / "f.onnx", in_channels=3, size=96, check=False).path)
    assert "Shape" not in {node.op_type for node in fixed.graph.node}


def test_what_is_traced_is_not_what_is_checked() -> None:
    assert EXAMPLE_SIZE not in ANY_SIZES


def test_a_resnet_takes_images_of_any_size_too(tmp_path: Path) -> None:
    model = _trained_like(ResNet(5, width=8))
    path = export_any_size(model, tmp_path / "m.onnx", in_channels=5).path
    assert _sizes(onnx.load(path).graph.output[0])[0] == "batch"


class _Tied(nn.Module):
    """Its trace takes the size of the example for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.any_size = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=(2, 3)) / float(x.shape[2])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            nn.Sequential(nn.AdaptiveMaxPool2d(7), nn.Flatten()),
            "Sequential cannot be exported for images of any size: ",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 60 * 76, 2)),
            "Export a file for each size that is needed",
        ),
        (_Tied(), "differs from the trained one: .* on random chips of 16 x 16 pixels"),
    ],
)
def test_a_network_of_one_size_is_refused(model: nn.Module, says: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        export_any_size(model, tmp_path / "m.onnx", in_channels=3)
    assert list(tmp_path.iterdir()) == []
    assert getattr(model, "any_size", False) is False


class _HalfNoisy(nn.Module):
    """Only its second output ignores eval mode."""

    output_names = ("calm", "noisy")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = x.mean(dim=(2, 3))
        return mean * 1000, mean + 0.01 * torch.rand(x.shape[:2])


def test_every_output_is_checked(tmp_path: Path) -> None:
    """Each output is compared with its own size: the first is a thousand times larger."""
    with pytest.raises(ExportError, match="differs from the trained one"):
        export_onnx(_HalfNoisy(), tmp_path / "m.onnx", in_channels=5, size=8)


@pytest.mark.parametrize("head", ["presence", "box"])
def test_not_a_number_in_one_output_is_refused(head: str, tmp_path: Path) -> None:
    model = _sppnet(2)
    nn.init.constant_(model.get_submodule(head).bias, float("nan"))
    with pytest.raises(ExportError, match="NaN, because its training diverged"):
        export_onnx(model, tmp_path / "m.onnx", in_channels=3, size=16)
    assert list(tmp_path.iterdir()) == []


class _Off(nn.Module):
    """Differs by a share of its largest value when it is exported."""

    def __init__(self, share: float, scale: float = 1.0) -> None:
        super().__init__()
        self.share, self.scale = share, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(2, 3)) * self.scale
        return mean * (1 + self.share) if torch.onnx.is_in_onnx_export() else mean


@pytest.mark.parametrize(("share", "refused"), [(1e-3, True), (1.5e-4, True), (0.7e-4, False), (-1e-3, True)])
def test_the_error_is_relative_to_the_largest_value(share: float, refused: bool, tmp_path: Path) -> None:
    if refused:
        with pytest.raises(ExportError, match=rf"relative error {abs(share):.1e} on random chips of 8 x 8"):
            export_onnx(_Off(share), tmp_path / "m.onnx", in_channels=3, size=8)
        assert list(tmp_path.iterdir()) == []
        return
    exported = export_onnx(_Off(share), tmp_path / "m.onnx", in_channels=3, size=8)
    assert exported.max_relative_error == pytest.approx(share, rel=0.02)


def test_outputs_near_nothing_are_judged_by_the_least_scale(tmp_path: Path) -> None:
    """Logits of 0.001 that are off by 1 % have an error of 1e-3 of the least scale, 0.01; logits of 1e-5 have 1e-5."""
    with pytest.raises(ExportError, match=r"relative error (9\.\de-04|1\.\de-03)"):
        export_onnx(_Off(0.01, scale=2e-3), tmp_path / "m.onnx", in_channels=3, size=8)
    assert (
        export_onnx(_Off(0.01, scale=2e-5), tmp_path / "m.onnx", in_channels=3, size=8).max_relative_error
        < 1e-4
    )
    nothing = export_onnx(_Off(0.0, scale=0.0), tmp_path / "m.onnx", in_channels=3, size=8)
    assert nothing.max_relative_error == 0.0


def test_negative_logits_export(tmp_path: Path) -> None:
    """An output far below 0 is large, not small: a difference of 1e-6 of it passes."""
    exported = export_onnx(_Off(1e-6, scale=-1e6), tmp_path / "m.onnx", in_channels=3, size=8)
    assert exported.max_relative_error < 1e-5
    with pytest.raises(ExportError, match=r"relative error 1\.0e-03"):
        export_onnx(_Off(1e-3, scale=-1e6), tmp_path / "n.onnx", in_channels=3, size=8)


def test_parameters_and_macs_by_hand() -> None:
    """Only trainable parameters count. MACs are those of convolutions and linear layers for one oblong image."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.append(nn.Linear(4, 2))
    assert count_params(model) == (4 * 27 + 4) + 8 + (8 + 2)
    model[0].weight.requires_grad = False
    assert count_params(model) == 4 + 8 + 10
    assert count_macs(model, in_channels=3, size=(8, 12)) == 6 * 10 * 4 * 27 + 8
    assert count_macs(model, in_channels=3, size=8) == 6 * 6 * 4 * 27 + 8
    assert not model.training


def test_without_a_check_nothing_is_compared(tmp_path: Path) -> None:
    exported = export_onnx(
        _Off(0.5), tmp_path / "deep" / "er" / "m.onnx", in_channels=3, size=(8, 12), check=False
    )
    assert np.isnan(exported.max_relative_error)
    assert _sizes(onnx.load(exported.path).graph.input[0]) == ["batch", 3, 8, 12]
    assert exported.onnx_mb == exported.path.stat().st_size / 1e6
