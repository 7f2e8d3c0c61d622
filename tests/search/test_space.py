"""Axes, points, and the identity of a point."""

from __future__ import annotations

import pytest

from dxc.config.compose import resolved
from dxc.config.identity import trial_hash
from dxc.errors import ConfigError
from dxc.search.space import Axis, Catalogue, Point, network_hash, parse_space
from tests.search.searches import SPACE, composed, is_group


def _catalogue(*arguments: str) -> Catalogue:
    return Catalogue(parse_space(SPACE, arguments), composed, is_group)


def test_the_published_space() -> None:
    """288 points a channel set are 180 networks (doi 10.1145/3624062.3624258, table 2): no pool, no pool knobs."""
    catalogue = _catalogue("data=7ch")
    assert catalogue.space.size == 288
    distinct = catalogue.distinct()
    assert len(distinct) == 180
    assert len({catalogue.identity(point).network for point in distinct.values()}) == 180
    by_trial: dict[str, list[Point]] = {}
    for point in catalogue.space.points():
        by_trial.setdefault(catalogue.identity(point).trial, []).append(point)
    assert distinct == {trial: points[0] for trial, points in by_trial.items()}  # the first of each
    pools = [catalogue.identity(point).config["model"]["pool"] for point in distinct.values()]
    assert pools.count("none") == 36 and pools.count("max") == 144

    both = _catalogue()
    assert both.space.size == 576 and len(both.distinct()) == 360


def test_six_variants_share_networks() -> None:
    """Batch sizes make trials of their own, not networks: six variants are 1,728 points, 1,080 trials, 360 networks."""
    catalogue = _catalogue("data.batch_size=8,16,32")
    assert catalogue.space.size == 1728
    distinct = catalogue.distinct()
    assert len(distinct) == 1080
    assert len({catalogue.identity(point).network for point in distinct.values()}) == 360


@pytest.mark.parametrize(
    "arguments",
    [
        ("model.padding=1", "model.kernel=3", "model.width=32,64", "model.stride=2", "model.pool_stride=2"),
        ("model.padding=1", "model.kernel=3", "model.width=32,64", "model.blocks=2,[1,1,2,2]", "model.pool=max",
         "model.stride=2", "data=7ch", "model.pool_kernel=3", "model.pool_stride=1,2"),
        # in_channels follows from the axis: what is put in place by hand would miss it
        ("data=5ch", "data.channels=[dem,red],[dem,red,nir]", "model.kernel=3", "model.padding=1", "model.pool=none",
         "model.width=32,64", "model.stride=2", "model.pool_kernel=2,3", "model.pool_stride=2"),
        ("data=5ch", "hardware.precision=32-true,bf16-mixed", "model.kernel=3", "model.padding=1", "model.pool=max"),
    ],
)  # fmt: skip
@pytest.mark.long
def test_identity_is_what_hydra_composes(arguments: tuple[str, ...]) -> None:
    if any("hardware." in each for each in arguments):
        with pytest.raises(ConfigError, match="hardware.precision is not an axis"):
            _catalogue(*arguments)
        return
    catalogue = _catalogue(*arguments)
    for point in catalogue.space.points():
        overrides = [*catalogue.space.fixed, *catalogue.space.overrides(point)]
        config = resolved(composed(overrides))
        identity = catalogue.identity(point)
        assert identity.trial == trial_hash(config)
        assert identity.network == network_hash(config)
        assert identity.config == config


def test_pins_changes_and_new_axes() -> None:
    space = parse_space(
        SPACE, ["model.kernel=3", "model.width=16,32", "+model.dilation=range(1,4)", "study=x"]
    )
    axes = {axis.key: axis.values for axis in space.axes}
    assert "model.kernel" not in axes
    assert axes["model.width"] == ("16", "32")
    assert axes["model.padding"] == ("1", "2", "3")
    assert axes["+model.dilation"] == ("1", "2", "3")
    assert space.fixed == ("model.kernel=3", "study=x")


def test_a_space_may_pin() -> None:
    space = parse_space({"model.kernel": 3, "model.width": "8,16", "model.pool": "none"}, ["model.pool=max"])
    assert space.axes == (Axis("model.width", ("8", "16")),)
    assert space.fixed == ("model.kernel=3", "model.pool=max")


def test_a_point_and_its_overrides() -> None:
    space = parse_space({"model.kernel": "3,5", "data": "5ch,7ch"}, [])
    assert space.overrides((1, 0)) == ["model.kernel=5", "data=5ch"]
    assert space.point_of(["model.kernel=5", "data=5ch"]) == (1, 0)
    assert space.point_of(["model.kernel=7", "data=5ch"]) is None
    assert space.point_of(["model.kernel=5"]) is None
    assert space.point_of(["model.kernel=5", "data=5ch", "seed=1"]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.kernel=3", "model.kernel=3,5"], "model.kernel is pinned and swept at once (model.kernel=3 and"),
        (["optimizer.lr=interval(0.001,0.1)"], "axes have values that can be counted"),
        (["model=resnet18,sppnet"], "model is not an axis of a search: every network has a space of its own"),
        (["study=a,b"], "study is not an axis"),
        (["hardware=cpu,pi"], "hardware is not an axis"),
        (["search.seed=1,2"], "search.seed is not an axis"),
        (["model.kernel=3,3"], "at least two different values"),
        (["model.kernel=3,,5"], "the command line"),
        ([f"{key}=1" for key in SPACE if key != "data"] + ["data=5ch"], "nothing is left to search"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_space(SPACE, arguments)
    assert message in str(raised.value)
