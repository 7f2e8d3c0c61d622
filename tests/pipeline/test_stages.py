"""What a stage's identity depends on; what is kept under it, and for how long."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from dxc.config.compose import PROJECT_ROOT
from dxc.config.plan import Plan
from dxc.pipeline.kept import kept_folder, mark_used, remove_least_used
from dxc.pipeline.stages import Artifact, Stage, identities, identity, tags, train_identity


def _by_hand(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _stages(**sections: dict) -> list[Stage]:
    return [Stage(name, section, lambda artifact, kept: artifact) for name, section in sections.items()]


def test_identities_by_hand() -> None:
    """Of its parent's identity, its name and its section, as JSON with sorted keys."""
    train = _by_hand('["", "train", {"chips": "c", "model": {"kernel": 3, "width": 4}}]')
    export = _by_hand(f'["{train}", "export", {{}}]')
    cost = _by_hand(f'["{export}", "cost", {{"threads": 1}}]')
    stages = _stages(train={"model": {"width": 4, "kernel": 3}, "chips": "c"}, export={}, cost={"threads": 1})
    assert identities(stages) == [train, export, cost]
    assert tags(stages) == {
        "dxc.base": train,
        "dxc.stages": f"train:{train} export:{export} cost:{cost}",
    }
    assert identity("export", {}, train) == export != identity("prune", {}, train)


def test_a_stage_in_between_leaves_those_before_it_alone() -> None:
    """The network that two compressions share is trained once."""
    plain = identities(_stages(train={"seed": 0}, export={}))
    light = identities(_stages(train={"seed": 0}, prune={"fraction": 0.25}, export={}))
    heavy = identities(_stages(train={"seed": 0}, prune={"fraction": 0.75}, export={}))
    assert plain[0] == light[0] == heavy[0]
    assert len({plain[1], light[1], heavy[1], light[2], heavy[2]}) == 5


def _plan(*overrides: str) -> Plan:
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return Plan.of(compose("train", overrides=list(overrides)))


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("hardware.threads=4", [True, True, False]),  # the cost alone
        ("hardware.predictors=[]", [True, True, False]),
        ("hardware.name=other", [True, True, False]),
        ("model.width=48", [False, False, False]),
        ("data.folds=4", [False, False, False]),
        ("trainer.max_epochs=6", [False, False, False]),
        ("seed=1", [False, False, False]),
        ("score=f1", [False, False, False]),
        ("source.seed=1", [False, False, False]),
        ("cache_dir=/elsewhere", [True, True, True]),
        ("again=true", [True, True, True]),
        ("kept_gb=1", [True, True, True]),
        ("hardware.measure=false", [True, True, True]),
        ("any_size_file=false", [True, True, True]),
        ("compress.finetune_epochs=3", [True, True, True]),  # nothing is pruned
    ],
)
def test_what_changes_which_stage(override: str, same: list[bool]) -> None:
    before, after = (identities(_chain(_plan(*each))) for each in ([], [override]))
    assert [one == other for one, other in zip(before, after, strict=True)] == same


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("model.width=48", [False] * 6),
        ("compress.fraction=0.25", [True, False, False, False, False, False]),
        ("compress.align=8", [True, False, False, False, False, False]),
        ("compress.finetune_epochs=3", [True, True, False, False, False, False]),
        ("compress.finetune_lr=0.1", [True, True, False, False, False, False]),
        ("compress.quantise=dynamic", [True, True, True, True, False, False]),
        ("compress.calibration_seed=1", [True, True, True, True, False, False]),
        ("hardware.threads=4", [True, True, True, True, True, False]),
    ],
)
def test_what_changes_which_stage_of_a_compressed_design(override: str, same: list[bool]) -> None:
    given = ["compress.fraction=0.5", "compress.quantise=static"]
    before, after = (_chain(_plan(*given, *more)) for more in ([], [override]))
    names = ["train", "prune", "finetune", "export", "quantise", "cost"]
    assert [stage.name for stage in before] == [stage.name for stage in after] == names
    pairs = zip(identities(before), identities(after), strict=True)
    assert [one == other for one, other in pairs] == same


def _chain(plan: Plan, chips: str = "chips") -> list[Stage]:
    from types import SimpleNamespace

    from dxc.pipeline.chain import chain
    from dxc.pipeline.networks import Bench

    unused: Any = None
    cache: Any = SimpleNamespace(data_hash=chips)
    return chain(Bench(plan, plan, unused, cache, unused, Path()))


def test_other_chips_are_another_network() -> None:
    plan = _plan()
    assert identities(_chain(plan, "a")) != identities(_chain(plan, "b"))
    assert identities(_chain(plan, "a"))[0] == train_identity(plan, "a")


def test_a_rung_of_all_the_epochs_is_the_whole() -> None:
    plan = _plan("trainer.max_epochs=5")
    assert train_identity(plan, "a", epochs=5) == train_identity(plan, "a")
    assert train_identity(plan, "a", epochs=2) == train_identity(_plan("trainer.max_epochs=2"), "a")


def test_an_artifact_begins_empty() -> None:
    assert Artifact() == Artifact((), None, None, "", None, {}, {}, ())


def _keep(cache_dir: Path, *names: str, megabytes: int) -> None:
    """One folder each, used in this order."""
    for number, name in enumerate(names):
        folder = kept_folder(cache_dir, name)
        folder.mkdir(parents=True)
        (folder / "fold1.pt").write_bytes(bytes(megabytes * 1_000_000))
        os.utime(folder, (1000 + number, 1000 + number))


def _left(cache_dir: Path) -> list[str]:
    return sorted(path.name for path in (cache_dir / "stages").iterdir())


def test_the_least_recently_used_go_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _keep(tmp_path, "a", "b", "c", "d", megabytes=2)
    with caplog.at_level("INFO"):
        remove_least_used(tmp_path, None)
        remove_least_used(tmp_path, 0.008)  # all of them fit
        assert _left(tmp_path) == ["a", "b", "c", "d"] and not caplog.records
        mark_used(kept_folder(tmp_path, "a"))
        mark_used(kept_folder(tmp_path, "never"))
        remove_least_used(tmp_path, 0.005)
    assert _left(tmp_path) == ["a", "d"]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said == (
        f"kept_gb=0.005: trained folds of 2 designs (0.004 GB) were removed from {tmp_path / 'stages'}, "
        "the least recently used"
    )
    remove_least_used(tmp_path, 0)
    assert _left(tmp_path) == []


def test_what_a_killed_removal_left_goes_too(tmp_path: Path) -> None:
    _keep(tmp_path, ".a.01234567", "b", megabytes=1)
    remove_least_used(tmp_path, 10)
    assert _left(tmp_path) == ["b"]


def test_nothing_was_kept_yet(tmp_path: Path) -> None:
    remove_least_used(tmp_path, 0)
    assert not (tmp_path / "stages").exists()
