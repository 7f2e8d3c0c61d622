"""Measured latency and memory: the real worker in a real process, and over a real SSH."""

from __future__ import annotations

import ast
import contextlib
import getpass
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from dxc.errors import ConfigError, HardwareError
from dxc.hardware.measure import latency as module
from dxc.hardware.measure.latency import StopRule, measure, record, spread_of
from tests.hardware.networks import one_operator

QUICK = StopRule(warmup_runs=1, warmup_seconds=0.0, min_runs=5, max_runs=7, max_seconds=5.0)
ANY = 1e9  # a spread that is never too large: these tests run on busy machines


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return one_operator(
        tmp_path / "net.onnx",
        "Conv",
        shape=["n", 3, 32, 32],
        weights={"w": [8, 3, 3, 3]},
        kernel_shape=[3, 3],
    )


def heavy(path: Path, weight_mb: int) -> Path:
    """A linear layer with this many 1e6 bytes of weights."""
    side = int((weight_mb * 1e6 / 4) ** 0.5)
    weight = numpy_helper.from_array(np.full((side, side), 0.5, np.float32), "w")
    node = helper.make_node("MatMul", ["image", "w"], ["scores"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", side])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", side])
    graph = helper.make_graph([node], "heavy", [image], [scores], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def save(path: Path, nodes: list, inputs: list, weights: dict[str, np.ndarray]) -> Path:
    """A network of these nodes from `inputs` (name, type, shape) to `scores`."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def script(path: Path, text: str) -> str:
    """An executable shell script. Its name has a space, at which a shell would split it."""
    path = path.with_name(f"{path.name} script")
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_record_holds_what_was_measured_and_where(network: Path, tmp_path: Path) -> None:
    measured = measure(network, stop=QUICK, max_spread=ANY, threads=2, affinity=[0])
    assert len(measured.raw_ms) == 7
    assert measured.median_ms == float(np.median(measured.raw_ms))
    assert measured.p95_ms == float(np.percentile(measured.raw_ms, 95))
    assert measured.valid
    environment = measured.environment
    assert (environment["threads"], environment["affinity"], environment["provider"]) == (2, [0], "cpu")
    assert environment["providers"] == ["CPUExecutionProvider"]
    assert environment["onnxruntime"] == onnxruntime.__version__
    assert environment["cores"] == os.cpu_count()
    assert environment["device"] == f"{environment['cpu']}, {os.cpu_count()} cores"
    assert len(environment["load_average"]) == 3
    assert environment["attempts"] == [
        {"median_ms": measured.median_ms, "spread": measured.spread}
    ]  # good at once
    assert measured.metrics() == {
        "measured_latency_ms": measured.median_ms,
        "measured_latency_p95_ms": measured.p95_ms,
        "peak_memory_mb": measured.peak_memory_mb,
    }
    measured.save(tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text())["raw_ms"] == list(measured.raw_ms)
    assert not [each for each in tmp_path.iterdir() if each.name not in ("record.json", "net.onnx")]


def running_worker() -> psutil.Process:
    """The worker that this process has started, once it runs."""
    for _ in range(2000):
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if str(module.WORKER) in " ".join(child.cmdline()):
                    return child
        time.sleep(0.01)
    raise TimeoutError("no worker was started")


def test_threads_are_those_asked_for(network: Path) -> None:
    """ONNX Runtime starts one thread fewer than it may use, because the caller works too."""
    rule = StopRule(max_runs=10**9, max_seconds=0.5)
    counts = []
    for threads in (1, 3):
        with ThreadPoolExecutor() as pool:
            measuring = pool.submit(measure, network, threads=threads, stop=rule, max_spread=ANY)
            worker, seen = running_worker(), 0
            with contextlib.suppress(psutil.NoSuchProcess):
                while not measuring.done():
                    seen = max(seen, worker.num_threads())
                    time.sleep(0.02)
            assert measuring.result().environment["affinity"] == sorted(os.sched_getaffinity(0))  # not pinned
        counts.append(seen)
    assert counts[1] - counts[0] == 2


def test_runs_end_by_number_and_by_seconds(network: Path) -> None:
    slow = StopRule(warmup_runs=1, warmup_seconds=0.0, min_runs=5, max_runs=10**9, max_seconds=0.0)
    assert len(measure(network, stop=slow, max_spread=ANY).raw_ms) == 5


def test_warm_up_goes_on_until_both_runs_and_seconds_are_over(network: Path) -> None:
    few = StopRule(warmup_runs=3, warmup_seconds=0.0, min_runs=1, max_runs=1, max_seconds=9.0)
    long = StopRule(warmup_runs=3, warmup_seconds=0.3, min_runs=1, max_runs=1, max_seconds=9.0)
    endless = StopRule(warmup_runs=10**9, warmup_seconds=0.0, min_runs=1, max_runs=1, max_seconds=0.1)
    warmed = [measure(network, stop=stop, max_spread=ANY) for stop in (few, long, endless)]
    assert warmed[0].environment["warmup_runs"] == 3
    assert warmed[1].environment["warmup_runs"] > 20  # each takes well under a millisecond
    assert warmed[2].environment["warmup_runs"] < 10**9
    assert [len(each.raw_ms) for each in warmed] == [1, 1, 1]


def test_times_are_milliseconds_of_execution(tmp_path: Path) -> None:
    """Runs of some ms fill the timed phase, so their sum is about its length."""
    rule = StopRule(warmup_runs=1, warmup_seconds=0.0, min_runs=1, max_runs=10**6, max_seconds=0.6)
    raw_ms = measure(heavy(tmp_path / "heavy.onnx", 64), batch=16, stop=rule, max_spread=ANY).raw_ms
    assert len(raw_ms) > 1
    assert 540 < sum(raw_ms) < 600 + max(raw_ms) + 1


def test_making_the_session_is_not_timed(tmp_path: Path) -> None:
    """Products of weights are folded once, when the session is made; a run only adds their mean."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.random((1200, 1200), dtype=np.float32)}
    nodes = [helper.make_node("MatMul", ["w", "w"], ["p0"])]
    nodes += [helper.make_node("MatMul", [f"p{i}", "w"], [f"p{i + 1}"]) for i in range(6)]
    nodes += [helper.make_node("ReduceMean", ["p6"], ["mean"], keepdims=0)]
    nodes += [helper.make_node("Add", ["image", "mean"], ["scores"])]
    path = save(tmp_path / "folded.onnx", nodes, [("image", TensorProto.FLOAT, ["n", 4])], weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    before = time.perf_counter()
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session_ms = (time.perf_counter() - before) * 1000
    assert session_ms > 50  # or this test proves nothing
    measured = measure(path, stop=QUICK, max_spread=ANY)
    assert measured.median_ms < session_ms / 50


def test_peak_memory_counts_the_network_not_the_process(network: Path, tmp_path: Path) -> None:
    """64 MB of weights take at least 64 MB and at most a few copies. The memory of the empty process does not count."""
    small = measure(network, stop=QUICK, max_spread=ANY)
    large = measure(heavy(tmp_path / "heavy.onnx", 64), stop=QUICK, max_spread=ANY)
    assert small.peak_memory_mb < 30
    assert 64 < large.peak_memory_mb < 4 * 64 + 30
    assert abs(small.baseline_memory_mb - large.baseline_memory_mb) < 10


def test_a_larger_batch_takes_more_memory(tmp_path: Path) -> None:
    """Batch 64 of 8 x 126 x 126 float32 outputs are 32.5 MB, its 3 x 128 x 128 inputs 12.6 MB."""
    network = one_operator(
        tmp_path / "net.onnx",
        "Conv",
        shape=["n", 3, 128, 128],
        weights={"w": [8, 3, 3, 3]},
        kernel_shape=[3, 3],
    )
    one, many = (measure(network, batch=batch, stop=QUICK, max_spread=ANY) for batch in (1, 64))
    assert 45 < many.peak_memory_mb - one.peak_memory_mb < 5 * 45.1  # it reorders, and returns a copy
    assert many.batch == 64


@pytest.mark.parametrize(
    ("raw_ms", "spread"),
    [
        ([2.0] * 9, 0.0),
        ([1.0, 2.0, 3.0, 2.0, 1.0, 3.0, 2.0, 3.0, 1.0], 1.0),  # quartiles 1 and 3 about 2
        ([1.0, 2.0] * 20, 2 / 3),  # two speeds take turns: quartiles 1 and 2 about 1.5
        ([1.0] * 7 + [1.5] * 2, 0.5),  # its end is slower: quartiles 1 and 1, thirds 1, 1 and 1.5
        ([1.5] * 2 + [1.0] * 7, 0.5),  # its beginning is
        ([1.0, 1.0, 9.0] + [1.0] * 27, 0.0),  # one outlier changes no median
    ],
)
def test_spread_by_hand(raw_ms: list[float], spread: float) -> None:
    assert spread_of(raw_ms) == pytest.approx(spread)


def test_a_record_that_spreads_too_far_is_invalid_and_has_no_latency() -> None:
    answer = {
        "raw_ms": [1.0, 2.0, 1.0, 2.0],
        "peak_memory_mb": 5.0,
        "baseline_memory_mb": 40.0,
        "environment": {},
    }
    measured = record(answer, 0.67, 0.10, 1, [{"median_ms": 1.5, "spread": 0.67}])
    assert not measured.valid
    assert "67%" in measured.reason
    assert measured.metrics() == {"peak_memory_mb": 5.0}
    allowed = record(answer, 0.67, 0.67, 1, [{"median_ms": 1.5, "spread": 0.67}])
    assert (allowed.valid, allowed.reason, allowed.median_ms) == (True, "", 1.5)


def test_noisy_attempts_are_repeated_and_kept(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COOL_DOWN_SECONDS", 0.1)
    measured = measure(network, stop=QUICK, max_spread=-1.0)  # nothing is good enough
    attempts = measured.environment["attempts"]
    assert len(attempts) == 3
    assert measured.spread == spread_of(measured.raw_ms) == min(each["spread"] for each in attempts)
    assert not measured.valid
    assert "3 attempts" in measured.reason
    assert set(measured.metrics()) == {"peak_memory_mb"}
    # a single run spreads by 0: what is just allowed is good at once
    single = StopRule(warmup_runs=1, warmup_seconds=0.0, min_runs=1, max_runs=1)
    measured = measure(network, stop=single, max_spread=0.0)
    assert measured.valid and len(measured.environment["attempts"]) == 1
    assert len(measure(network, stop=single, max_spread=-1.0, attempts=2).environment["attempts"]) == 2


def test_what_is_measured_by_default() -> None:
    """The defaults are those of the docs and of a search: 10 % of spread, and 2 to 3 s for a network of 5 ms."""
    assert StopRule() == StopRule(
        warmup_runs=5, warmup_seconds=0.3, min_runs=15, max_runs=1000, max_seconds=1.5
    )
    assert module.MAX_SPREAD == 0.10
    assert inspect.signature(measure).parameters["max_spread"].default == 0.10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 0}, "hardware.threads must be a whole number"),
        ({"batch": 0}, "batch must be a whole number"),
        ({"affinity": [4096]}, "hardware.affinity names cores"),
        ({"affinity": [0, 4096]}, "there is no core 4096"),
        ({"affinity": 1}, "hardware.affinity must be a list"),
        ({"affinity": ["0"]}, "hardware.affinity: a core must be a whole number"),
        ({"affinity": [-1]}, "hardware.affinity: a core must be a whole number"),
        ({"batch": 10**9}, "MemoryError: .*a smaller batch needs less"),
        ({"python": "/missing/python"}, "/missing/python cannot be started: No such file"),
    ],
)
def test_what_cannot_be_measured_is_said(change: dict, said: str, network: Path) -> None:
    with pytest.raises((ConfigError, HardwareError), match=said):
        measure(network, stop=QUICK, **change)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_a_gpu_needs_its_build_of_onnxruntime(network: Path) -> None:
    with pytest.raises(
        HardwareError, match=r"AzureExecutionProvider|CPUExecutionProvider.*pip install onnxruntime-gpu"
    ):
        measure(network, provider="cuda", stop=QUICK)


def test_files_that_cannot_be_measured(network: Path, tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="no such file"):
        measure(tmp_path / "missing.onnx")
    (tmp_path / "torn.onnx").write_bytes(network.read_bytes()[:50])
    with pytest.raises(HardwareError, match="torn.onnx cannot be read as an ONNX file"):
        measure(tmp_path / "torn.onnx", stop=QUICK)
    free = one_operator(tmp_path / "free.onnx", "Relu", shape=["n", 3, "height", 8])
    with pytest.raises(HardwareError, match="input 'image' has no fixed height"):
        measure(free, stop=QUICK)
    fixed = one_operator(tmp_path / "fixed.onnx", "Relu", shape=[1, 3, 8, 8])
    with pytest.raises(HardwareError, match="fixed to batch 1; export with an open batch"):
        measure(fixed, batch=4, stop=QUICK)
    unnamed = one_operator(tmp_path / "unnamed.onnx", "Relu", shape=["n", 3, None, 8])
    with pytest.raises(HardwareError, match="input 'image' has no fixed .*; export with a fixed image size"):
        measure(unnamed, stop=QUICK)
    cast = helper.make_node("Cast", ["image"], ["scores"], to=TensorProto.FLOAT)
    bytes_in = save(tmp_path / "bytes.onnx", [cast], [("image", TensorProto.UINT8, ["n", 4])], {})
    with pytest.raises(HardwareError, match=r"is a tensor\(uint8\), not float32"):
        measure(bytes_in, stop=QUICK)
    reshape = helper.make_node("Reshape", ["image", "size"], ["scores"])
    image = ("image", TensorProto.FLOAT, ["n", 4])
    stuck = save(tmp_path / "stuck.onnx", [reshape], [image], {"size": np.array([2, 2])})
    assert measure(stuck, stop=QUICK, max_spread=ANY).valid
    with pytest.raises(
        HardwareError, match=r"(?s)stuck.onnx cannot be measured here: .*Reshape.*fit only one batch"
    ):
        measure(stuck, batch=3, stop=QUICK)


def test_the_worker_is_alone(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings for training and files beside the worker do not affect a measurement, and telemetry is off."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("DXC_TEST", "kept")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "alone").mkdir()
    worker = shutil.copy(module.WORKER, tmp_path / "alone" / "worker.py")
    (tmp_path / "alone" / "numpy.py").write_text("raise RuntimeError('not numpy')")
    monkeypatch.setattr(module, "WORKER", Path(worker))
    seen = tmp_path / "environment"
    python = script(tmp_path / "python", f'env > {seen}\nexec {sys.executable} "$@"')
    assert measure(network, python=python, stop=QUICK, max_spread=ANY).valid
    names = [line.partition("=")[0] for line in seen.read_text().splitlines()]
    assert "OMP_NUM_THREADS" not in names
    assert {"PATH", "DXC_TEST"} <= set(names)
    assert (
        list((tmp_path / "temporary").iterdir()) == []
    )  # ONNX Runtime's telemetry would keep its identity here


def test_the_worker_runs_on_an_older_python() -> None:
    """The worker has the syntax of Python 3.9 and imports nothing that a bare device lacks."""
    tree = ast.parse(module.WORKER.read_text(), feature_version=(3, 9))
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "torch"}


def test_a_worker_that_is_killed_is_said(network: Path) -> None:
    """Kill the worker as the kernel does when memory runs out."""

    threading.Thread(target=lambda: running_worker().send_signal(signal.SIGKILL), daemon=True).start()
    forever = StopRule(max_runs=10**9, max_seconds=20.0)
    with pytest.raises(HardwareError, match=r"status -9 \(killed; out of memory\?"):
        measure(network, stop=forever)


def test_a_worker_that_does_not_end_is_given_up(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 1)
    with pytest.raises(HardwareError, match="no answer within 1 s; is the machine busy"):
        measure(network, stop=StopRule(max_runs=10**9, max_seconds=20.0))


def test_a_python_without_onnxruntime_is_told_what_it_needs(network: Path, tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", f'exec {sys.executable} -S -I "$@"')
    with pytest.raises(HardwareError, match="here: python3 -m pip install numpy onnxruntime$"):
        measure(network, python=bare, stop=QUICK)
    with pytest.raises(HardwareError, match="ended with status 3: no disk"):
        measure(network, python=script(tmp_path / "broken", "echo no disk >&2; exit 3"), stop=QUICK)


class Server(NamedTuple):
    """A device: the ssh options that reach it, and its lists of keys."""

    options: list[str]
    folder: Path

    def with_key(self, key: Path) -> list[str]:
        """The options with another identity."""
        return [str(key) if each == str(self.folder / "user") else each for each in self.options]

    def forced(self, name: str, prefix: str) -> list[str]:
        """Options whose logins run `prefix` before every command, like the shell profile of a device."""
        make_key(self.folder / name)
        wrapped = script(self.folder / name, f'{prefix}\neval "$SSH_ORIGINAL_COMMAND"').replace(" ", "\\ ")
        with (self.folder / "authorized").open("a") as keys:
            keys.write(f'command="{wrapped}" {(self.folder / f"{name}.pub").read_text()}')
        return self.with_key(self.folder / name)


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real SSH server on 127.0.0.1 with keys of its own."""
    server = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if server is None or shutil.which("ssh") is None:
        pytest.skip("no sshd or no ssh: install openssh-server and openssh-client")
    folder = tmp_path_factory.mktemp("ssh")
    make_key(folder / "host")
    make_key(folder / "user")
    shutil.copy(folder / "user.pub", folder / "authorized")
    port = free_port()
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nAcceptEnv TMPDIR\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its rights
    with (folder / "log").open("w") as log:
        running = subprocess.Popen([server, "-D", "-e", "-f", folder / "config"], stderr=log)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    client = ["-F", "none", "-p", str(port), "-i", str(folder / "user"), "-o", "IdentitiesOnly=yes"]
    known = [
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        f"UserKnownHostsFile={folder}/known",
        "-o",
        "LogLevel=ERROR",
    ]
    yield Server([*client, *known], folder)
    running.terminate()
    running.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


HOST = f"{getpass.getuser()}@127.0.0.1"


def test_a_device_is_measured_over_ssh(network: Path, sshd: Server, tmp_path: Path) -> None:
    """A shell may print a greeting before every command. No file stays on the device."""
    (tmp_path / "device's folder").mkdir()
    measured = measure(
        network,
        host=HOST,
        ssh_options=[
            "-o",
            f'SetEnv="TMPDIR={tmp_path}/device\'s folder"',
            *sshd.forced("greeting", "echo hello"),
        ],
        remote_python=sys.executable,
        stop=QUICK,
        max_spread=ANY,
        affinity=[0],
        batch=2,
    )
    assert len(measured.raw_ms) == 7
    assert measured.batch == 2
    assert measured.environment["affinity"] == [0]
    assert measured.environment["onnxruntime"] == onnxruntime.__version__
    assert list((tmp_path / "device's folder").iterdir()) == []


def beside(folder: Path, location: str) -> Path:
    """A network with its weights in a file beside it."""
    (folder / location).parent.mkdir(parents=True)
    path = folder / "it's a net.onnx"
    path.parent.mkdir(exist_ok=True)
    model = onnx.load(one_operator(path, "MatMul", shape=["n", 8], weights={"w": [8, 4]}))
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


@pytest.mark.parametrize("location", ["worker.py", "deep/w $HOME.bin"])
def test_weights_beside_the_file_are_copied_to_a_device(location: str, tmp_path: Path) -> None:
    """Weights are copied to where the .onnx expects them. A file of weights named worker.py is not the worker."""
    path = beside(tmp_path / "here", location)
    (tmp_path / "device").mkdir()
    shell = script(tmp_path / "ssh", f'export TMPDIR="{tmp_path}/device"\nshift 2\nexec sh -c "$1"')
    request = {
        "provider": "cpu",
        "threads": 1,
        "batch": 2,
        "model": str(path),
        "affinity": None,
        **asdict(QUICK),
    }
    with module._there([*module.data_files(path), path], "device", [shell], sys.executable) as ask:
        (place,) = (tmp_path / "device").iterdir()
        copies = {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()}
        assert copies == {"worker.py", f"network/{path.name}", f"network/{location}"}
        assert (place / "worker.py").read_bytes() == module.WORKER.read_bytes()
        assert (place / "network" / location).read_bytes() == bytes(np.ones(32, np.float32))
        assert len(ask(request)["raw_ms"]) == 7
    assert list((tmp_path / "device").iterdir()) == []


def test_weights_outside_of_the_folder_are_not_measured(tmp_path: Path) -> None:
    path = beside(tmp_path / "here", "w.bin")
    (tmp_path / "secret").write_bytes(bytes(128))
    (tmp_path / "here" / "w.bin").unlink()
    (tmp_path / "here" / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(HardwareError, match="only files in the folder of the .onnx are read"):
        measure(path, stop=QUICK)


@pytest.mark.long
def test_a_device_without_python_or_packages_is_told_what_it_needs(
    network: Path, sshd: Server, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    options = ["-o", f"SetEnv=TMPDIR={tmp_path}/there", *sshd.options]
    with pytest.raises(HardwareError, match="has no python4: install Python"):
        measure(network, host=HOST, ssh_options=options, remote_python="python4", stop=QUICK)
    bare = script(tmp_path / "bare", f'exec {sys.executable} -S -I "$@"')
    with pytest.raises(HardwareError, match=f"on {HOST}: python3 -m pip install numpy onnxruntime"):
        measure(network, host=HOST, ssh_options=options, remote_python=bare, stop=QUICK)
    assert list((tmp_path / "there").iterdir()) == []  # it is removed after an error too


@pytest.mark.long
def test_a_device_out_of_memory_space_or_time_is_said(
    network: Path, sshd: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = script(tmp_path / "killed", "kill -9 $$")  # not a failure of ssh, though ssh says 255 to both
    with pytest.raises(
        HardwareError, match=r"there: the process ended with status 137 \(killed; out of memory\?"
    ):
        measure(network, host=HOST, ssh_options=sshd.options, remote_python=killed, stop=QUICK)
    (tmp_path / "full" / "network").mkdir(parents=True)
    (tmp_path / "full" / "network" / network.name).symlink_to("/dev/full")
    full = sshd.forced("full", f"mktemp() {{ echo {tmp_path}/full; }}")
    with pytest.raises(
        HardwareError, match=r"\(0 MB\) cannot be copied there: .*No space left .*is there space"
    ):
        measure(network, host=HOST, ssh_options=full, stop=QUICK)
    nowhere = ["-o", "SetEnv=TMPDIR=/nowhere", *sshd.options]
    with pytest.raises(HardwareError, match="has no temporary folder: mktemp: .*/nowhere"):
        measure(network, host=HOST, ssh_options=nowhere, stop=QUICK)
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 1)
    forever = StopRule(max_runs=10**9, max_seconds=20.0)
    with pytest.raises(HardwareError, match="no answer within 1 s; is the machine busy"):
        measure(network, host=HOST, ssh_options=sshd.options, remote_python=sys.executable, stop=forever)


def test_keys_that_are_not_known_are_said(network: Path, sshd: Server, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    with pytest.raises(HardwareError, match=r"Permission denied.*ssh-copy-id"):
        measure(network, host=HOST, ssh_options=sshd.with_key(tmp_path / "other"), stop=QUICK)
    strict = ["-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile=/dev/null", *sshd.options]
    with pytest.raises(HardwareError, match=r"verification failed.*Connect once by hand"):
        measure(network, host=HOST, ssh_options=strict, stop=QUICK)


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh client")
def test_a_host_that_cannot_be_reached_is_said(network: Path) -> None:
    closed = ["-F", "none", "-p", str(free_port())]
    with pytest.raises(
        HardwareError, match=r"hardware.host=nobody@127.0.0.1 cannot be reached.*refused.*Is it on"
    ):
        measure(network, host="nobody@127.0.0.1", ssh_options=closed, stop=QUICK)


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "", "pi@a b", 5])
def test_a_host_that_is_no_address_is_refused(host: str, network: Path) -> None:
    with pytest.raises(ConfigError, match="must read user@address"):
        measure(network, host=host, stop=QUICK)
