"""torch as the runtime: the real worker in a real process, what it compares, refuses and reports."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils._python_dispatch import TorchDispatchMode

from dxc.config.hardware import Hardware
from dxc.deploy.export import export_onnx
from dxc.errors import ConfigError, HardwareError
from dxc.hardware import spec
from dxc.hardware.costs import describe_conditions, describe_execution, measure_on
from dxc.hardware.graph import OnnxModule
from dxc.hardware.measure import latency as module
from dxc.hardware.measure import reference as references
from dxc.hardware.measure import torch_worker
from dxc.hardware.measure.latency import Measurement, StopRule, measure
from dxc.hardware.measure.torch_worker import ALLOWED, largest_error
from dxc.hardware.measure.worker import Refused
from dxc.hardware.spec import device_name, runtime_of
from dxc.models.sppnet import SppNet
from tests.hardware.networks import exported_resnet, one_operator

QUICK = StopRule(warmup_runs=2, warmup_seconds=0.0, min_runs=3, max_runs=5, max_seconds=5.0)
ANY = 1e9


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return exported_resnet(tmp_path / "net.onnx")


def test_a_file_is_timed_with_torch(network: Path) -> None:
    measured = measure(network, runtime="torch", batch=2, threads=1, stop=QUICK, max_spread=ANY)
    environment = measured.environment
    assert 3 <= len(measured.raw_ms) <= 5 and min(measured.raw_ms) > 0
    assert measured.median_ms == np.median(measured.raw_ms)
    assert (environment["runtime"], environment["torch"]) == ("torch", torch.__version__)
    assert (environment["execution"], environment["arithmetic"]) == ("eager", "float32")
    assert (environment["threads"], environment["warmup_runs"], measured.batch) == (1, 2, 2)
    assert 0 < environment["largest_error"] < ALLOWED["float32"]
    assert measured.peak_memory_mb > 0
    said = f"{device_name()}; torch {torch.__version__}, cpu, 1 thread"
    assert describe_conditions(measured) == said
    assert describe_execution([measured]) == []


def test_latencies_of_two_runtimes_are_told_apart(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SPREAD", ANY)
    monkeypatch.setattr(
        measure, "__kwdefaults__", {**measure.__kwdefaults__, "stop": QUICK, "max_spread": ANY}
    )
    conditions = {
        runtime: describe_conditions(measure_on(network, Hardware(name="cpu", runtime=runtime)))
        for runtime in ("onnxruntime", "torch", "auto")
    }
    assert f"; onnxruntime {onnxruntime.__version__}, cpu, 1 thread" in conditions["onnxruntime"]
    assert f"; torch {torch.__version__}, cpu, 1 thread" in conditions["torch"]
    assert conditions["auto"] == conditions["onnxruntime"]


def test_wrong_outputs_are_refused_before_anything_is_timed(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime is made to answer for another image."""
    real = references.session

    class Other:
        def __init__(self, path: str, threads: int) -> None:
            self.runner = real(path, threads)

        def get_inputs(self) -> Any:
            return self.runner.get_inputs()

        def run(self, names: None, feeds: dict[str, np.ndarray]) -> Any:
            return self.runner.run(names, {name: array * 1.01 for name, array in feeds.items()})

    monkeypatch.setattr(references, "session", Other)
    said = r"its outputs differ from ONNX Runtime's by .* 1e-03 is allowed in float32; hardware.runtime=onnxruntime"
    with pytest.raises(HardwareError, match=said):
        measure(network, runtime="torch", stop=QUICK, max_spread=ANY)


def test_the_largest_error_by_hand() -> None:
    """An error of 0.5 where the largest value is 4; of two images of three that are compared."""
    expected = [np.array([[1.0, -4.0], [2.0, 0.0]]), np.array([1.0, 1.0])]
    batch = np.array([[1.0, -4.0], [2.5, 0.0], [9.0, 9.0]])
    assert largest_error([batch, np.ones(3)], expected) == 0.125
    assert largest_error([batch], expected) == np.inf  # an output is missing
    assert largest_error([batch[:, :1], np.ones(3)], expected) == np.inf  # another shape
    assert np.isnan(largest_error([batch * np.nan, np.ones(3)], expected))
    assert not largest_error([batch * np.nan, np.ones(3)], expected) <= 1.0
    assert largest_error([np.array(2.0)], [np.array(2.0)]) == 0.0


@pytest.mark.long
def test_files_that_torch_cannot_time(network: Path, tmp_path: Path) -> None:
    erf = one_operator(tmp_path / "erf.onnx", "Erf", shape=["n", 3, 4, 4])
    with pytest.raises(
        HardwareError, match=r"erf.onnx cannot be measured here: .*no Erf in dxc.hardware.graph"
    ):
        measure(erf, runtime="torch", stop=QUICK)
    fixed = one_operator(tmp_path / "fixed.onnx", "Relu", shape=[6, 3, 8, 8])
    with pytest.raises(HardwareError, match="fixed to batch 6; export with an open batch"):
        measure(fixed, runtime="torch", batch=4, stop=QUICK)
    assert measure(fixed, runtime="torch", batch=6, stop=QUICK, max_spread=ANY).valid
    model = onnx.load(fixed)
    model.ir_version = 99
    onnx.save(model, tmp_path / "later.onnx")
    with pytest.raises(HardwareError, match="(?s)later.onnx cannot be measured here: .*a whole ONNX file"):
        measure(tmp_path / "later.onnx", runtime="torch", stop=QUICK)
    with pytest.raises(ConfigError, match="hardware.runtime=tflite is unknown"):
        measure(network, runtime="tflite", stop=QUICK)


def test_several_inputs_and_outputs_keep_their_places(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "two.onnx", "Sub", shape=["n", 3], weights={"y": [1, 3]})
    model = onnx.load(path)
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]))
    model.graph.node.append(helper.make_node("Relu", ["y"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    onnx.save(model, path)
    measured = measure(path, runtime="torch", batch=8, stop=QUICK, max_spread=ANY)
    assert measured.environment["largest_error"] == 0.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_said(network: Path) -> None:
    with pytest.raises(HardwareError, match="finds no CUDA device; does nvidia-smi show the GPU"):
        measure(network, runtime="torch", provider="cuda", stop=QUICK)


@pytest.mark.long
def test_what_cannot_be_captured_is_timed_operator_by_operator(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process gets the same request without the graph, and the record says why."""
    seen: list[bool] = []
    real = module._answer

    def answer(done: Any, doing: str) -> dict[str, Any]:
        found = real(done, doing)
        if len(seen) == 1:
            return {"error": "capture", "message": "RuntimeError: no copies to the host"}
        return found

    def run(command: list[str], **options: Any) -> Any:
        seen.append(json.loads(options["input"])["cuda_graph"])
        return real_run(command, **options)

    real_run = module.subprocess.run
    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module, "_answer", answer)
    measured = measure(network, runtime="torch", stop=QUICK, max_spread=ANY)
    assert seen == [True, False]
    assert measured.environment["eager_because"] == "RuntimeError: no copies to the host"
    (note,) = describe_execution([measured, measured])  # memory is that of the host here
    assert note.endswith("cannot be captured as a CUDA graph: RuntimeError: no copies to the host")


def test_how_a_gpu_s_conditions_read() -> None:
    environment = {
        "runtime": "torch",
        "provider": "cuda",
        "device": "NVIDIA H100 80GB HBM3",
        "torch": "2.11.0+cu130",
        "execution": "CUDA graph",
        "arithmetic": "TF32",
        "threads": 1,
    }
    measured = Measurement((1.0,), 1.0, 1.0, 0.0, True, "", 1.0, 0.0, 1, environment)
    assert (
        describe_conditions(measured) == "NVIDIA H100 80GB HBM3; torch 2.11.0+cu130, cuda, CUDA graph, TF32"
    )


@pytest.mark.parametrize(
    ("facts", "providers", "chosen"),
    [
        ({"runtime": "auto", "provider": "cuda"}, ["CPUExecutionProvider"], "torch"),
        ({"runtime": "auto", "provider": "cuda"}, ["CUDAExecutionProvider"], "onnxruntime"),
        ({"runtime": "auto", "provider": "cpu"}, ["CPUExecutionProvider"], "onnxruntime"),
        ({"runtime": "auto", "provider": "cuda", "host": "me@gpu"}, ["CPUExecutionProvider"], "onnxruntime"),
        ({"runtime": "onnxruntime", "provider": "cuda"}, ["CPUExecutionProvider"], "onnxruntime"),
        ({"runtime": "torch", "provider": "cpu"}, ["CPUExecutionProvider"], "torch"),
    ],
)
def test_the_runtime_that_measures(
    facts: dict[str, str], providers: list[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    runtime, why = runtime_of(Hardware.of({"name": "mine", **facts}))
    assert runtime == chosen
    forced = facts["runtime"] == "auto" and chosen == "torch"
    assert why == (
        "measured with torch: this onnxruntime has CPUExecutionProvider, but not CUDA" if forced else ""
    )


def test_torch_measures_here_only(network: Path) -> None:
    with pytest.raises(
        ConfigError, match="hardware.host: hardware.runtime=torch measures on this machine only"
    ):
        Hardware.of({"name": "mine", "runtime": "torch", "host": "me@gpu"})
    assert Hardware.of({"name": "mine", "runtime": "torch", "host": None}).runtime == "torch"
    with pytest.raises(ConfigError, match="on this machine only, and not on hardware.host"):
        measure(network, runtime="torch", host="me@gpu", stop=QUICK)


def exported_sppnet(path: Path) -> Path:
    torch.manual_seed(0)
    return export_onnx(SppNet(4, level=5, features=64), path, in_channels=4, size=100, check=False).path


class Copies(TorchDispatchMode):
    """Collects operators that make a tensor on the device from one of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        of_host = isinstance(args[0], torch.Tensor) and args[0].device.type == "cpu"
        if of_host and isinstance(made, torch.Tensor) and made.device.type == "meta":
            self.seen.append(str(func))
        return made


def test_indices_are_copied_to_the_device_once(tmp_path: Path) -> None:
    """A copy from the host in every run cannot be captured. The bins of an SPP-Net are gathered by constants."""
    path = exported_sppnet(tmp_path / "spp.onnx")
    assert "Gather" in {node.op_type for node in onnx.load(path).graph.node}
    network = OnnxModule(path).to("meta")
    image = torch.zeros(2, 4, 100, 100, device="meta")
    with torch.inference_mode():
        network(image)
        with Copies() as copies:
            network(image)
    assert copies.seen == []


@pytest.mark.gpu
@pytest.mark.parametrize("make", [exported_resnet, exported_sppnet])
def test_a_cuda_graph_on_a_gpu(make: Any, tmp_path: Path) -> None:
    """Captured without a reason to be eager, right, and in device memory; eager is no faster at batch 1."""
    path = make(tmp_path / "net.onnx")
    record: dict[int, Measurement] = {}
    for batch in (1, 8):
        record[batch] = measure(path, runtime="torch", provider="cuda", batch=batch, max_spread=ANY)
        environment = record[batch].environment
        assert environment["execution"] == "CUDA graph", environment
        assert "eager_because" not in environment
        assert environment["largest_error"] < ALLOWED[environment["arithmetic"]]
        assert environment["memory_from"] == "torch.cuda.max_memory_allocated"
        assert environment["device"] == torch.cuda.get_device_name()
    weights = sum(buffer.nbytes for buffer in OnnxModule(path).buffers()) / 1e6
    assert record[1].peak_memory_mb > weights
    assert record[8].peak_memory_mb > record[1].peak_memory_mb
    assert record[8].median_ms < 8 * record[1].median_ms


@pytest.mark.gpu
def test_auto_on_a_gpu_measures_with_what_is_there(network: Path) -> None:
    hardware = Hardware(name="mine", runtime="auto", provider="cuda")
    measured = measure_on(network, hardware)
    there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert runtime_of(hardware)[0] == ("onnxruntime" if there else "torch")
    assert ("; onnxruntime " if there else "; torch ") in describe_conditions(measured)
    assert spec.absent(hardware) == ""


class FakeStream:
    """A stream, event or graph that does nothing; a graph is replayed by running what was captured."""

    cuda_stream = 0

    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None: ...

    def elapsed_time(self, other: Any) -> float:
        return 2.5

    def replay(self) -> None:
        REPLAYED.append(self)


REPLAYED: list[Any] = []


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's calls on a machine without a GPU: the order of the worker's steps is run, not the GPU's work."""
    REPLAYED.clear()
    fakes = {
        "is_available": lambda: True,
        "get_device_capability": lambda: (9, 0),
        "get_device_name": lambda: "NVIDIA Fake",
        "Stream": FakeStream,
        "Event": FakeStream,
        "CUDAGraph": FakeStream,
        "current_stream": FakeStream,
        "set_stream": lambda _: None,
        "graph": lambda graph, stream: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "max_memory_allocated": lambda: 3_000_000,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)


def request_of(path: Path, reference: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": str(path), "provider": "cuda", "threads": 1, **asdict(QUICK), **reference, **more}


def test_the_steps_on_a_gpu(network: Path, fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with references.reference(network, 8, 1) as reference:
        answer = torch_worker.main(request_of(network, reference, cuda_graph=True))
        assert answer["raw_ms"] == [2.5] * 5
        assert torch.backends.cudnn.allow_tf32  # off for the comparison in float32
        assert len(REPLAYED) == 1 + 1 + 1 + 5  # compared, first, warm-up, timed
        assert (answer["baseline_memory_mb"], answer["peak_memory_mb"]) == (0.0, 3.0)
        environment = answer["environment"]
        assert (environment["execution"], environment["arithmetic"]) == ("CUDA graph", "TF32")
        assert (environment["device"], environment["memory_from"]) == (
            "NVIDIA Fake",
            "torch.cuda.max_memory_allocated",
        )
        told = Measurement((1.0,), 1.0, 1.0, 0.0, True, "", 3.0, 0.0, 8, environment)
        assert describe_execution([told]) == [
            "peak memory is device memory, as torch allocated it (weights, outputs, workspaces)"
        ]
        assert torch.get_float32_matmul_precision() == "highest"  # put back
        assert not torch.backends.cudnn.benchmark
        eager = torch_worker.main(request_of(network, reference, cuda_graph=False))
        assert (eager["environment"]["execution"], len(REPLAYED)) == ("eager", 8)

        with monkeypatch.context() as tight, pytest.raises(Refused, match="0e[+]00 is allowed in float32"):
            tight.setitem(torch_worker.ALLOWED, "float32", 0.0)
            torch_worker.main(request_of(network, reference, cuda_graph=True))
        torch.backends.cudnn.allow_tf32 = True

        def refuse(*_: Any, **__: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nwith advice")

        monkeypatch.setattr(torch.cuda, "graph", refuse)
        with pytest.raises(Refused, match=r"^RuntimeError: operation not permitted .* capturing$") as refused:
            torch_worker.main(request_of(network, reference, cuda_graph=True))
        assert refused.value.kind == "capture"
