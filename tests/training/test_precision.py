"""trainer.precision=auto: what the processor says, what a step takes, what is kept, and what is an identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from dxc.config.compose import PROJECT_ROOT
from dxc.config.plan import Plan
from dxc.pipeline.run import run
from dxc.pipeline.stages import train_identity
from dxc.tracking.record import Record
from dxc.training import precision
from dxc.training.build import fit_to_machine
from dxc.training.precision import choose_precision, native_bf16
from tests.conftest import ChipMaker

XEON = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\nbogomips : 4000\n"
ROME = "processor\t: 0\nmodel name\t: EPYC with bf16 in its name\nflags\t\t: fpu avx2 avx\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd svebf16 i8mm bf16\n"
OLDER_ARM = "processor\t: 0\nFeatures\t: fp asimd svebf16\nCPU part : 0xd0b\n"


def _plan(tmp_path: Path, *further: str) -> Plan:
    overrides = [
        f"cache_dir={tmp_path}/cache", "data=5ch", "data.size=20", "data.batch_size=8", "data.folds=2",
        "model.width=16", "trainer.max_epochs=1", "hardware.predictors=[]", "hardware.measure=false", "profile=none",
        "progress=false",
    ]  # fmt: skip
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        return Plan.of(compose("train", overrides=[*overrides, *further]))


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """processor(cpuinfo): this machine's processor is the one so described."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "CPUINFO", path)
    monkeypatch.delenv(precision.CHOSEN, raising=False)
    return lambda text: path.write_text(text) and None


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The seconds per image that a step is said to take, by precision, and a list of what was asked for."""
    steps: dict[str, Any] = {"32-true": 0.012, "bf16-mixed": 0.008, "asked": []}

    def seconds_per_image(plan: Plan, *, budget_s: float) -> tuple[float, float]:
        steps["asked"].append(plan.trainer.precision)
        return steps[str(plan.trainer.precision)], 0.001

    monkeypatch.setattr(precision, "seconds_per_image", seconds_per_image)
    return steps


@pytest.mark.parametrize(("text", "native"), [(XEON, True), (ROME, False), (ARM, True), (OLDER_ARM, False)])
def test_what_a_processor_says(text: str, native: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert native_bf16(tmp_path / "cpuinfo") is native
    assert not native_bf16(tmp_path / "none")  # macOS has no such file


@pytest.mark.parametrize(
    ("cpuinfo", "bf16_s", "expected", "reason", "times"),
    [
        (XEON, 0.008, "bf16-mixed", "1.50 times as fast as fp32 with this network", 2),
        (XEON, 0.012 / 1.11, "bf16-mixed", "1.11 times as fast", 2),
        (XEON, 0.012 / 1.09, "32-true", "bf16 is only 1.09 times as fast", 2),  # might be noise
        (XEON, 0.036, "32-true", "bf16 is only 0.33 times as fast", 2),
        (ROME, 0.008, "32-true", "this processor does not compute bf16 natively", 0),  # not even timed
    ],
)
def test_bf16_only_where_it_is_clearly_faster(
    cpuinfo: str, bf16_s: float, expected: str, reason: str, times: int, tmp_path: Path,
    processor: Callable[[str], None], timed: dict[str, Any], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    processor(cpuinfo)
    timed["bf16-mixed"] = bf16_s
    with caplog.at_level("INFO"):
        chosen = choose_precision(_plan(tmp_path), "a processor")
    assert chosen.trainer.precision == expected
    assert f"trains in {expected}, " in caplog.text and reason in caplog.text
    assert timed["asked"] == ["32-true", "bf16-mixed"][:times]


def test_what_is_named_is_used(
    tmp_path: Path, processor: Callable[[str], None], timed: dict[str, Any]
) -> None:
    processor(XEON)
    for named in ("32-true", "bf16-mixed", "64-true"):
        plan = _plan(tmp_path, f"trainer.precision={named}")
        assert choose_precision(plan, "a processor") == plan
    assert not timed["asked"]


def test_times_are_kept_for_a_machine_and_a_shape(
    tmp_path: Path, processor: Callable[[str], None], timed: dict[str, Any]
) -> None:
    processor(XEON)
    kept = tmp_path / "cache" / "precision"

    def files_after(device: str, *further: str) -> int:
        choose_precision(_plan(tmp_path, *further), device)
        return len(list(kept.iterdir()))

    assert files_after("one") == 1 and len(timed["asked"]) == 2
    (file,) = kept.iterdir()
    assert json.loads(file.read_text()) == {"device": "one", "fp32_s": 0.012, "bf16_s": 0.008}
    # what a step's time does not depend on
    assert files_after("one", "seed=3", "trainer.max_epochs=7", "study=other", "data.folds=3") == 1
    assert len(timed["asked"]) == 2
    others = ["model.width=24", "data.batch_size=4", "data=7ch", "data.size=24", "trainer.channels_last=false",
              "optimizer=sgd"]  # fmt: skip
    for count, other in enumerate(others, start=2):
        assert files_after("one", other) == count
    assert files_after("two") == len(others) + 2


@pytest.mark.parametrize(
    "damage",
    [
        "", "[]", "{", '{"device": "one", "fp32_s": 0.012}', '{"device": "one", "fp32_s": -1, "bf16_s": 0.001}',
        '{"device": "one", "fp32_s": "9", "bf16_s": 0.001}', '{"device": "one", "fp32_s": Infinity, "bf16_s": 0.001}',
        '{"device": "one", "fp32_s": NaN, "bf16_s": 0.001}',
        '{"device": "one", "fp32_s": 0.1, "bf16_s": 0.001, "more": 1}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_file_is_measured_anew(
    damage: str, tmp_path: Path, processor: Callable[[str], None], timed: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Its times would choose bf16, those that are measured choose fp32."""
    processor(XEON)
    timed["bf16-mixed"] = 0.012
    choose_precision(_plan(tmp_path), "one")
    (file,) = (tmp_path / "cache" / "precision").iterdir()
    good = file.read_text()
    file.write_text(damage)
    assert choose_precision(_plan(tmp_path), "one").trainer.precision == "32-true"
    assert f"{file} cannot be used and is measured anew" in caplog.text
    assert file.read_text() == good


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, processor: Callable[[str], None], timed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    processor(XEON)
    (tmp_path / "cache").write_text("a file")
    assert choose_precision(_plan(tmp_path), "one").trainer.precision == "bf16-mixed"
    assert "the times of training steps cannot be kept" in caplog.text


def test_steps_are_timed(tmp_path: Path, processor: Callable[[str], None]) -> None:
    """With the clock, on this processor: both formats, in positive seconds, and the rule decides by them."""
    processor(XEON)
    chosen = choose_precision(_plan(tmp_path), "one")
    (file,) = (tmp_path / "cache" / "precision").iterdir()
    times = json.loads(file.read_text())
    assert 0 < times["fp32_s"] < 10 and 0 < times["bf16_s"] < 10
    faster = times["fp32_s"] / times["bf16_s"] >= precision.CLEARLY_FASTER
    assert chosen.trainer.precision == ("bf16-mixed" if faster else "32-true")


def test_a_network_without_a_step_is_left_to_its_own_error(
    tmp_path: Path, processor: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    processor(XEON)
    plan = _plan(tmp_path, "data.size=2", "model.kernel=7", "model.padding=0", "model.stride=2")
    with caplog.at_level("INFO"):
        assert choose_precision(plan, "one").trainer.precision == "32-true"
    assert "no step could be timed" in caplog.text


def test_further_processes_take_the_choice_of_the_first(
    tmp_path: Path, processor: Callable[[str], None], timed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(XEON)
    assert choose_precision(_plan(tmp_path), "one").trainer.precision == "bf16-mixed"
    monkeypatch.setattr(precision, "is_first_process", lambda: False)
    processor(ROME)
    assert choose_precision(_plan(tmp_path), "one").trainer.precision == "bf16-mixed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("asked", "expected"),
    [("16-mixed", "auto"), ("bf16-mixed", "auto"), ("auto", "auto"), ("32-true", "32-true"), ("64-true", "64-true")],
)  # fmt: skip
def test_half_precision_for_a_gpu_without_one(asked: str, expected: str, tmp_path: Path) -> None:
    plan = _plan(tmp_path, "trainer.accelerator=auto", f"trainer.precision={asked}")
    there = fit_to_machine(plan)
    assert (there.trainer.accelerator, there.trainer.precision) == ("cpu", expected)


def test_what_was_asked_for_is_the_identity(tmp_path: Path) -> None:
    auto, full, mixed = (
        _plan(tmp_path, f"trainer.precision={each}") for each in ("auto", "32-true", "bf16-mixed")
    )
    assert _plan(tmp_path).trial == auto.trial  # the default
    assert len({train_identity(each, "chips") for each in (auto, full, mixed)}) == 3
    assert len({each.trial for each in (auto, full, mixed)}) == 3


@pytest.mark.long
def test_folds_of_auto_serve_on_another_machine(
    make_chips: ChipMaker, tmp_path: Path, processor: Callable[[str], None], timed: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """One machine trains in bf16. The other, which would train in fp32, takes its folds and says so."""
    plan = _plan(tmp_path, "source=chips", f"source.root={make_chips(per_class=8)}")
    tags, params = [], []
    for number, cpuinfo in enumerate((XEON, ROME)):
        processor(cpuinfo)
        with caplog.at_level("INFO"):
            run(plan, tmp_path / "out", record=Record(tmp_path / f"{number}", run_id="1"))
        record = Record.read(tmp_path / f"{number}")
        assert record is not None
        tags.append(record.content["tags"])
        params.append(record.content["params"])
    assert (
        "2 of 2 folds are taken from the cache" in caplog.text and "in bf16-mixed; again=true" in caplog.text
    )
    assert [each["dxc.precision"] for each in tags] == ["bf16-mixed", "bf16-mixed"]
    assert tags[0]["dxc.base"] == tags[1]["dxc.base"]
    assert params[0] == params[1] and params[0]["trainer.precision"] == "auto"
