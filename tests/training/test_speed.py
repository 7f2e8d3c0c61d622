"""How many images are timed, by a clock that only the network moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.plan import Plan
from dxc.data.augment import CropFlip, Drawn
from dxc.training import speed


@pytest.mark.parametrize(
    ("image_s", "counts"),
    [
        # a batch of 8 takes 0.0625 s, and ten of them more than 0.6 s
        (1 / 128, [2, 2, *[8] * 10] * 2),
        # four images fit in 0.3 s, and three times 0.25 s is more than 0.6 s
        (1 / 16, [2, 2, *[4] * 3] * 2),
        # no less than two images can be timed, and the first step says that it is long
        (1.0, [2, 2] * 2),
    ],
)  # fmt: skip
def test_fewer_images_of_a_slow_network(
    image_s: float, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["data.batch_size=8", "data.size=32", "model.width=4"])
    now = 0.0
    seen: list[int] = []
    forward = torch.nn.Module.__call__

    def watched(module: torch.nn.Module, *given: torch.Tensor) -> torch.Tensor:
        nonlocal now
        if type(module).__name__ == "ResNet":
            seen.append(len(given[0]))
            now += image_s * len(given[0])
        return forward(module, *given)

    monkeypatch.setattr(torch.nn.Module, "__call__", watched)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now))
    training, validation = speed.seconds_per_image(Plan.of(resolved(cfg)))
    assert training == pytest.approx(image_s) and validation == pytest.approx(image_s)
    assert seen == counts


def test_augmentation_is_timed_where_images_are_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the step of the network in training, nothing in validation."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        overrides = ["data=cifar10", "model=resnet8", "data.batch_size=8"]
        plans = {
            kind: Plan.of(resolved(compose("train", overrides=[*overrides, f"data.augment={kind}"])))
            for kind in ("crop_flip", "none")
        }
    now = 0.0
    forward, apply = torch.nn.Module.__call__, CropFlip.apply

    def watched(module: torch.nn.Module, *given: torch.Tensor) -> torch.Tensor:
        nonlocal now
        if type(module).__name__ == "TinyResNet":
            now += len(given[0]) / 128
        return forward(module, *given)

    def augmented(augment: CropFlip, images: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        nonlocal now
        now += len(images) / 1024
        return apply(augment, images, drawn)

    monkeypatch.setattr(torch.nn.Module, "__call__", watched)
    monkeypatch.setattr(CropFlip, "apply", augmented)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now))
    assert speed.seconds_per_image(plans["crop_flip"]) == pytest.approx((1 / 128 + 1 / 1024, 1 / 128))
    assert speed.seconds_per_image(plans["none"]) == pytest.approx((1 / 128, 1 / 128))
