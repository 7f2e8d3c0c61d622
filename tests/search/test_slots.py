"""Trials that share GPUs: which GPU, how much of its memory, and what happens where that is too little.

Most of it needs no GPU: search.gpus names the GPUs, and a trial without CUDA trains on the processor in its slot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient

from dxc.config.plan import Plan
from dxc.errors import ConfigError, HardwareError, TrainingError
from dxc.search import slots
from dxc.search import trial as trial_module
from dxc.search.ledger import Entry, Ledger, rungs_to
from dxc.search.settings import Settings
from dxc.search.slots import Slot, fewer, free_slot, gpus_here, lacked_memory, slot_of
from dxc.search.states import Rung
from dxc.tracking.record import Record
from dxc.training.build import fit_to_machine
from tests.search.searches import Searching, composed

CUDA = torch.cuda.is_available()


def _plan(*overrides: str) -> Plan:
    return Plan.of(composed(["model.kernel=3", "hardware=a100", *overrides]))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """machine(count): torch says that there are so many GPUs."""

    def has(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return has


@pytest.mark.parametrize(
    ("count", "gpu", "override", "expected"),
    [
        (2, 1, "trainer.accelerator=auto", [1]),
        (2, 0, "trainer.accelerator=cuda", [0]),
        (2, None, "trainer.accelerator=gpu", 1),  # any
        (2, 1, "trainer.devices=2", 2),
        (2, 1, "trainer.accelerator=cpu", 1),
        (0, 1, "trainer.accelerator=auto", 1),
    ],
)
def test_a_trials_gpu(
    count: int, gpu: int | None, override: str, expected: object, machine: Callable[[int], None]
) -> None:
    machine(count)
    assert fit_to_machine(_plan(override), gpu=gpu).trainer.devices == expected


@pytest.mark.parametrize(
    ("count", "chosen", "override", "expected"),
    [
        (4, None, "trainer.accelerator=auto", [0, 1, 2, 3]),
        (4, [2, 0], "trainer.accelerator=auto", [2, 0]),
        (4, [2], "trainer.accelerator=cpu", []),
        (4, None, "trainer.devices=2", []),
        (4, None, "trainer.devices=[1]", []),  # the user's choice
        (0, None, "trainer.accelerator=auto", []),
        (0, [0, 1], "trainer.accelerator=auto", [0, 1]),  # slots without a GPU
    ],
)
def test_the_gpus_of_a_search(
    count: int, chosen: list[int] | None, override: str, expected: list[int], machine: Callable[[int], None]
) -> None:
    machine(count)
    assert gpus_here(_plan(override), chosen) == expected


def test_a_gpu_that_is_not_there(machine: Callable[[int], None]) -> None:
    machine(2)
    with pytest.raises(HardwareError, match=r"search.gpus=\[0, 2\]: there is no GPU 2; this machine has 2"):
        gpus_here(_plan(), [0, 2])


@pytest.mark.parametrize("gpus", [[], [0, 0], [-1], ["0"], [True], 2, "all"])
def test_what_is_no_list_of_gpus(gpus: object) -> None:
    section = {**composed([]).search, "limits": {}, "gpus": gpus}
    with pytest.raises(ConfigError, match=r"search.gpus must be a list of different numbers of GPUs"):
        Settings.of(
            {key: value for key, value in section.items() if key in Settings.model_fields}, "accuracy"
        )


@pytest.mark.parametrize(
    ("gpus", "at_once", "expected"),
    [
        ([0], 1, [(0, 0)]),
        ([0], 3, [(0, 2)] * 3),
        ([0, 1], 2, [(0, 0), (1, 0)]),
        ([0, 1], 5, [(0, 2), (1, 1), (0, 2), (1, 1), (0, 2)]),
        ([3, 1, 2], 4, [(3, 1), (1, 0), (2, 0), (3, 1)]),
        ([0, 1, 2], 2, [(0, 0), (1, 0)]),
    ],
)
def test_slots_fill_gpus_evenly(gpus: list[int], at_once: int, expected: list[tuple[int, int]]) -> None:
    assert [slot_of(number, gpus, at_once) for number in range(at_once)] == [
        Slot(gpu, neighbours) for gpu, neighbours in expected
    ]


@pytest.mark.parametrize(
    ("gpus", "at_once", "expected"), [(1, 4, 3), (1, 2, 1), (2, 8, 6), (2, 5, 4), (2, 3, 2), (4, 16, 12)]
)
def test_fewer_trials_on_the_fullest_gpu(gpus: int, at_once: int, expected: int) -> None:
    assert fewer(range(gpus), at_once) == expected < at_once


HOLD = """
import sys
from pathlib import Path
from dxc.search.slots import free_slot
with free_slot(Path(sys.argv[1]), [0, 1], 3) as slot:
    print(slot.gpu, slot.neighbours, flush=True)
    sys.stdin.read()
"""


def test_a_slot_is_held_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it ends, for whatever reason. A process takes its last slot again, if that is free."""
    monkeypatch.setattr(slots, "POLL_S", 0.02)
    monkeypatch.setattr(slots, "_last", None)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None and other.stdout is not None
    try:
        assert other.stdout.readline() == "0 1\n"  # slot 0 of 3, on GPU 0 like slot 2
        with free_slot(tmp_path, [0, 1], 3) as second:
            assert second == Slot(1, 0)
            taken: list[Slot] = []
            with free_slot(tmp_path, [0, 1], 3) as third:
                assert third == Slot(0, 1)

                def wait() -> None:
                    with free_slot(tmp_path, [0, 1], 3) as slot:
                        taken.append(slot)

                waiting = threading.Thread(target=wait)
                waiting.start()
                waiting.join(0.2)
                assert waiting.is_alive() and not taken
                other.kill()
                waiting.join(10)
                assert taken == [Slot(0, 1)]
    finally:
        other.kill()
        other.communicate()
    monkeypatch.setattr(slots, "_last", 1)
    with free_slot(tmp_path, [0, 1], 3) as again, free_slot(tmp_path, [0, 1], 3) as next_one:
        assert (again, next_one) == (Slot(1, 0), Slot(0, 1))


def _raised(error: BaseException, cause: BaseException | None) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (_raised(TrainingError("lower data.batch_size"), torch.OutOfMemoryError("")), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (TrainingError("CUDA out of memory, as a text"), False),
        (_raised(ValueError("a"), KeyError("b")), False),
        (None, False),
    ],
)
def test_what_a_lack_of_memory_looks_like(error: BaseException | None, expected: bool) -> None:
    assert lacked_memory(error) is expected


FOUR = ["hardware=a100", "hardware.predictors=[]", "search.tuner=grid", "search.limits={}", "search.gpus=[0]"]
"""Six trials of five networks that train on a GPU, if there is one."""


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """A GPU on which no more than two trials find room. Also the slots of all trials, and those of the ones that found
    room. Trials take no time."""
    seen: dict[str, list] = {"slots": [], "trained": []}

    def compute(plan: Plan, record: Record, job: object, gpu: int | None) -> dict[str, str]:
        slot = seen["slots"][-1]
        assert gpu == slot.gpu
        if slot.neighbours > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        seen["trained"].append(slot)
        record.log({"accuracy": 0.5, "onnx_mb": 1.0})
        record.tag({"dxc.rungs": rungs_to({Rung(2, 1): [0.5, 0.5]})})
        return {"state": "finished", "reason": ""}

    monkeypatch.setattr(slots, "_limit_memory", seen["slots"].append)
    monkeypatch.setattr(trial_module, "_compute", compute)
    return seen


@pytest.mark.long
@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_too_little_memory_means_fewer_at_once(
    searching: Searching, small_gpu: dict[str, list], caplog: pytest.LogCaptureFixture
) -> None:
    """No trial is lost or counted as tried: four at once, then three, then two, with one line each."""
    runs = searching(*FOUR, "search.max_trials=4", "search.retries=0", "search.parallel=4", parallel=4)
    assert [run.tags["dxc.state"] for run in runs] == ["finished"] * 4
    assert {run.tags["dxc.attempts"] for run in runs} == {"1"}
    assert [slot.neighbours for slot in small_gpu["slots"]] == [3] * 4 + [2] * 3 + [1] * 4
    assert small_gpu["trained"] == [Slot(0, 1)] * 4
    said = [each.getMessage() for each in caplog.records if "too little GPU memory" in each.getMessage()]
    assert [each.split(", ")[1].split(" from")[0] for each in said] == ["3 at once", "2 at once"]
    assert said[0].startswith("4 of 4 trials had too little GPU memory beside others")
    assert said[1].endswith("(as with search.parallel=2)")


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_too_little_memory_for_one_alone_is_a_failure(
    searching: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")

    monkeypatch.setattr(trial_module, "_compute", compute)
    (failed,) = searching(*FOUR, "search.max_trials=1", "search.parallel=2", parallel=2)
    assert (failed.tags["dxc.state"], failed.tags["dxc.attempts"]) == ("failed", "2")
    assert failed.tags["dxc.reason"].startswith("OutOfMemoryError: CUDA out of memory")


@pytest.mark.long
@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_a_search_that_was_killed_short_of_memory_goes_on(
    searching: Searching, small_gpu: dict[str, list]
) -> None:
    class Killed(Exception):
        pass

    def launch(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        searching.launch(jobs, watch)
        raise Killed

    options = [*FOUR, "search.max_trials=3"]
    with pytest.raises(Killed):
        searching(*options, "search.parallel=3", launch=launch, parallel=3)
    assert sorted(searching.states().values()) == ["planned"] * 3
    searching(*options)
    assert sorted(searching.states().values()) == ["finished"] * 3


PARETO = [
    "search.tuner=pareto", "model.stride=2", "model.pool=none", "model.width=4,8", "search.rungs=[[1,1.0]]",
    "hardware=a100", "hardware.predictors=[]", "search.limits={}", "tracking.checkpoints=false",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_going_on_with_another_number_of_gpus(searching: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun on four GPUs, stopped, and finished on one: no param, no identity and no kept fold depends on them."""
    seen: list[int | None] = []
    fit = fit_to_machine

    def fitted(plan: Plan, *, gpu: int | None = None) -> Plan:
        seen.append(gpu)
        return fit(plan, gpu=gpu)

    monkeypatch.setattr("dxc.pipeline.machine.fit_to_machine", fitted)

    class Enough(Exception):
        pass

    def first(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        if searching.launched:
            raise Enough
        monkeypatch.setattr(slots, "_last", 3)
        searching.launch(jobs, watch)

    with pytest.raises(Enough):
        searching(*PARETO, "search.gpus=[0,1,2,3]", launch=first, parallel=4)
    assert set(seen) == {3}
    begun = {run.tags["dxc.trial"]: run for run in searching.trials()}
    seen.clear()
    runs = {run.tags["dxc.trial"]: run for run in searching(*PARETO, "search.gpus=[0]")}
    assert set(seen) == {0} and set(searching.states().values()) == {"finished"}
    for trial, run in runs.items():
        assert "dxc.went_on_with" not in run.tags and run.params["trainer.devices"] == "1"
        assert begun[trial].params.items() <= run.params.items()
        config = MlflowClient(searching.uri).download_artifacts(run.run_id, "config.yaml")
        assert yaml.safe_load(Path(config).read_text())["trainer"]["devices"] == 1
        part, whole = json.loads(run.tags["dxc.rungs"])
        assert whole["accuracies"][0] == part["accuracies"][0]  # the fold was taken, not trained again


@pytest.mark.long
@pytest.mark.skipif(CUDA, reason="there is a GPU")
@pytest.mark.parametrize(
    ("overrides", "launcher", "expected"),
    [
        ([], 8, 2),  # one on each GPU
        (["search.parallel=6"], 8, 6),  # three on each
        (["search.parallel=6"], 4, 4),  # as many as the launcher runs
        (["trainer.accelerator=cpu"], 8, 8),
    ],
)
def test_how_many_at_once(overrides: list[str], launcher: int, expected: int, searching: Searching) -> None:
    """Of two GPUs, by what a launcher runs and what was asked for."""

    class Seen(Exception):
        pass

    def launch(jobs: Sequence[Sequence[str]], watch: Callable[[], bool]) -> None:
        job = composed(jobs[0]).search.job
        raise Seen(job.at_once)

    with pytest.raises(Seen) as raised:
        searching(*FOUR, "search.gpus=[0,1]", *overrides, launch=launch, parallel=launcher)
    assert raised.value.args == (expected,)


@pytest.mark.gpu
def test_a_process_keeps_to_its_share(tmp_path: Path) -> None:
    """An eighth of the memory does not hold a quarter of it; alone, a process may take that."""
    script = """
import sys, torch
from pathlib import Path
from dxc.search.slots import free_slot, lacked_memory
quarter = torch.cuda.get_device_properties(0).total_memory // 4
for at_once in (8, 1):
    with free_slot(Path(sys.argv[1]) / str(at_once), [0], at_once):
        try:
            torch.empty(quarter, dtype=torch.uint8, device="cuda:0")
            print("fits")
        except RuntimeError as error:
            print("lacks memory" if lacked_memory(error) else error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, env=os.environ, timeout=300
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["lacks memory", "fits"], done.stderr


def test_a_record_of_another_run_lacks_nothing(tmp_path: Path) -> None:
    entry = Entry("0" * 12, "run", "planned", [], 0)
    folder = tmp_path / entry.trial
    ledger = Ledger.__new__(Ledger)
    ledger.folder = tmp_path
    assert not ledger.lacked_memory(entry)
    for content, expected in (
        ({"run_id": "run", "lacked_memory": True}, True),
        ({"run_id": "other", "lacked_memory": True}, False),
        ({"run_id": "run", "lacked_memory": "yes"}, False),
        ({"run_id": "run"}, False),
    ):
        Record(folder, **content).write()
        assert ledger.lacked_memory(entry) is expected
