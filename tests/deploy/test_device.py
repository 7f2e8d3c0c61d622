"""The worker of a device, and what brings it files: what arrives, what goes on, what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from dxc.config.hardware import is_host
from dxc.data.bands import scale_fixed
from dxc.deploy import device as module
from dxc.deploy import device_worker as worker
from dxc.deploy.device import Device, Payload, RefusedError, UnreachableError
from dxc.deploy.export import export_onnx
from dxc.deploy.metadata import Metadata
from dxc.errors import ConfigError, HardwareError, Stopped

COUNT, SIZE = 23, 12
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)


def payload(array: np.ndarray, label: str = "images") -> Payload:
    content = io.BytesIO()
    np.save(content, array)
    return Payload(content.getvalue(), label)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier of five classes that is fed with (x - mean) / std."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    metadata = Metadata(
        channels=("red", "green", "blue"), normalise="fixed", mean=MEAN, std=STD, classes=tuple("abcde")
    )
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    return export_onnx(model, path, in_channels=3, size=SIZE, metadata=metadata).path


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(folder=str(tmp_path / "device"))


def sent(
    device: Device,
    network: Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    prepared: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Bring a network and its images to a device; the request that runs them."""
    files = {
        "network": Payload(network.read_bytes(), "network"),
        "images": payload(images),
        "labels": payload(labels, "labels"),
    }
    for file in files.values():
        device.put(file)
    names = {name: file.sha256 for name, file in files.items()}
    return {
        "key": "0123456789ab", "attempt": "", "prepared": prepared, "repeats": 3, "seconds": 0, "idle_seconds": 0,
        **names, **more,
    }  # fmt: skip


def answers_here(network: Path, fed: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": fed[i : i + 1]})[0] for i in range(len(fed))])


def test_a_network_is_run_over_all_images(network: Path, images: np.ndarray, device: Device) -> None:
    """Rescaled on the device as the file says; accuracy and answers are those of ONNX Runtime here."""
    expected = answers_here(network, scale_fixed(images, MEAN, STD))
    labels = expected.argmax(1).astype(np.int64)
    labels[:6] = (labels[:6] + 1) % 5  # six are wrong
    events: list[dict[str, Any]] = []
    request = sent(device, network, images, labels, seconds=0.05)
    record = device.run(request, lambda event, at_s: events.append(event))
    assert (record["images"], record["correct"]) == (COUNT, COUNT - 6)
    repeats = record["repeats"]
    assert len(repeats) == 3 and all(
        each["correct"] == COUNT - 6 and each["same_answers"] for each in repeats
    )
    assert all(each["images"] == each["passes"] * COUNT and each["seconds"] >= 0.05 for each in repeats)
    assert all(0 < each["inference_seconds"] <= each["seconds"] for each in repeats)
    times = np.frombuffer(device.fetch(request["key"], "times.bin", record["files"]["times.bin"]), "<f4")
    assert len(times) == sum(each["images"] for each in repeats)
    inside = [each["inference_seconds"] for each in repeats]
    assert times.sum() / 1000 == pytest.approx(sum(inside), rel=1e-4)
    first = repeats[0]["images"]
    assert repeats[0]["median_ms"] == pytest.approx(float(np.median(times[:first])))
    scores = np.frombuffer(
        device.fetch(request["key"], "output-scores.bin", record["files"]["output-scores.bin"]), "<f4"
    )
    np.testing.assert_array_equal(scores.reshape(COUNT, 5), expected)
    kinds = [event["event"] for event in events]
    assert kinds == ["images", *["begin", "end"] * 3]
    assert [e["images"] for e in events if e["event"] == "end"] == [each["images"] for each in repeats]
    assert 0 < record["peak_memory_bytes"] < 300e6
    assert record["environment"]["runtime_version"] == onnxruntime.__version__


def test_images_that_do_not_fit_are_read_in_blocks(
    network: Path,
    images: np.ndarray,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    labels = np.zeros(COUNT, np.int64)
    request = sent(device, network, images, labels) | device.settings
    records = []
    for free in (
        10**9,
        4 * 3 * SIZE * SIZE * 20,
    ):  # the second has room for a quarter of twenty: five at a time
        monkeypatch.setattr(worker, "state", lambda free=free: {"memory_free_bytes": free})
        (Path(device.folder) / "results").mkdir(parents=True, exist_ok=True)
        worker.measure(device.folder, request, worker.Events(os.devnull))
        home = Path(device.folder) / "results" / request["key"]
        records.append(
            (json.loads((home / "record.json").read_text()), (home / "output-scores.bin").read_bytes())
        )
    (whole, of_whole), (blocks, of_blocks) = records
    assert whole["images_in_memory"] and not blocks["images_in_memory"]
    assert of_whole == of_blocks and whole["correct"] == blocks["correct"]
    assert [each["images"] for each in blocks["repeats"]] == [COUNT] * 3


def test_prepared_images_are_fed_as_they_are(network: Path, images: np.ndarray, device: Device) -> None:
    fed = scale_fixed(images, MEAN, STD)
    expected = answers_here(network, fed)
    request = sent(device, network, fed, expected.argmax(1).astype(np.int64), prepared=True)
    record = device.run(request, lambda event, at_s: None)
    assert record["correct"] == COUNT
    wrong = sent(device, network, fed[:, :2], np.zeros(COUNT, np.int64), prepared=True, key="0123456789ac")
    with pytest.raises(RefusedError, match=r"images are \[2, 12, 12\], the network takes \[3, 12, 12\]"):
        device.run(wrong, lambda event, at_s: None)


def test_presence_decides_where_a_network_finds_boxes() -> None:
    outputs = [np.array([-1.0, 2.0, 0.0], np.float32), np.zeros((3, 4), np.float32)]
    assert worker.classes(["presence", "box"], outputs).tolist() == [0, 1, 0]
    assert worker.classes(["scores"], [np.array([[1.0, 3.0], [2.0, 0.0]])]).tolist() == [1, 0]


def test_a_file_is_sent_once_and_a_cut_one_goes_on(device: Device) -> None:
    """Compressed where that gains; what is there already is not sent again."""
    plain = Payload(np.random.default_rng(0).bytes(100_000), "noise")
    small = Payload(b"dxc " * 50_000, "text")
    assert plain.packed == (plain.content, False)
    assert small.packed[1] and len(small.packed[0]) < 2_000
    device.put(plain)
    device.put(small)
    assert device.sent_bytes == 100_000 + len(small.packed[0])
    objects = Path(device.folder) / "objects"
    assert (objects / small.sha256).read_bytes() == small.content
    device.put(plain)
    assert device.sent_bytes == 100_000 + len(small.packed[0])

    cut = Payload(np.random.default_rng(1).bytes(100_000), "noise")
    part = objects / f"{cut.sha256}.{cut.sha256[:16]}.part"
    part.write_bytes(cut.content[:70_000])  # as a connection that ended leaves it
    before = device.sent_bytes
    device.put(cut)
    assert device.sent_bytes - before == 30_000
    assert (objects / cut.sha256).read_bytes() == cut.content and not part.exists()

    broken = Payload(np.random.default_rng(2).bytes(100_000), "noise")
    part = objects / f"{broken.sha256}.{broken.sha256[:16]}.part"
    part.write_bytes(bytes(70_000))  # of another content: it is found out, and sent whole
    device.put(broken)
    assert (objects / broken.sha256).read_bytes() == broken.content


def test_a_damaged_object_is_refused_and_removed(network: Path, images: np.ndarray, device: Device) -> None:
    request = sent(device, network, images, np.zeros(COUNT, np.int64))
    damaged = Path(device.folder) / "objects" / request["images"]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(RefusedError, match="damaged") as refused:
        device.run(request, lambda event, at_s: None)
    assert refused.value.kind == "missing" and not damaged.exists()


def test_a_full_disk_is_said_before_anything_is_sent(small_disk: Path) -> None:
    device = Device(folder=str(small_disk / "dxc"))
    with pytest.raises(
        RefusedError, match=r"5\.0 MB are needed, 1\.\d MB are free; free some space"
    ) as refused:
        device.put(Payload(np.random.default_rng(0).bytes(1_000_000), "noise"))
    assert refused.value.kind == "space" and device.sent_bytes == 0


def test_one_deployment_at_a_time(device: Device) -> None:
    said: list[str] = []
    entered = threading.Event()
    other = Device(folder=device.folder)

    def second() -> None:
        with other.held(said.append):
            entered.set()

    with device.held(said.append):
        waiting = threading.Thread(target=second)
        waiting.start()
        for _ in range(200):
            if said:
                break
            time.sleep(0.05)
        assert not entered.is_set()
    assert entered.wait(20)
    waiting.join()
    assert len(said) == 1
    assert said[0].startswith("this machine is in use by ") and f"process {os.getpid()}" in said[0]


def _deploy_in_a_process(device: Device, request: dict[str, Any]) -> subprocess.Popen[bytes]:
    code = (
        "import json, sys; from dxc.deploy.device import Device\n"
        "folder, request = sys.argv[1], json.loads(sys.argv[2])\n"
        "Device(folder=folder).run(request, lambda event, at: print(event['event'], flush=True))"
    )
    command = [sys.executable, "-c", code, device.folder, json.dumps(request)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.mark.long
def test_a_run_outlives_whoever_started_it(network: Path, images: np.ndarray, device: Device) -> None:
    """Killed with kill -9, its run goes on. The next one follows it, and it is not run twice."""
    request = sent(device, network, images, np.zeros(COUNT, np.int64), seconds=1.5)
    first = _deploy_in_a_process(device, request)
    assert first.stdout is not None
    assert first.stdout.readline() == b"images\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    pid = json.loads((Path(device.folder) / "run.json").read_text())["pid"]
    events: list[dict[str, Any]] = []
    record = device.run(request, lambda event, at_s: events.append(event))
    assert json.loads((Path(device.folder) / "run.json").read_text())["pid"] == pid  # no second run
    assert events and all(event.get("replayed") for event in events)
    assert len(record["repeats"]) == 3
    events.clear()
    assert device.run(request, lambda event, at_s: events.append(event)) == record  # its result is there
    assert not events
    again = device.run({**request, "attempt": "2", "seconds": 0}, lambda event, at_s: events.append(event))
    assert again["attempt"] == "2" and events


def test_a_run_that_died_with_the_device_begins_again(
    network: Path, images: np.ndarray, device: Device
) -> None:
    request = sent(device, network, images, np.zeros(COUNT, np.int64), seconds=1)
    first = _deploy_in_a_process(device, request)
    assert first.stdout is not None
    assert first.stdout.readline() == b"images\n"
    os.kill(json.loads((Path(device.folder) / "run.json").read_text())["pid"], signal.SIGKILL)
    assert first.wait(20) != 0  # it says that the run ended without a result
    record = device.run({**request, "seconds": 0}, lambda event, at_s: None)
    assert len(record["repeats"]) == 3


def test_who_stops_it_stops_the_run(network: Path, images: np.ndarray, device: Device) -> None:
    request = sent(device, network, images, np.zeros(COUNT, np.int64), seconds=30)

    def stop(event: dict[str, Any], at_s: float) -> None:
        raise Stopped(signal.SIGTERM)

    with pytest.raises(Stopped):
        device.run(request, stop)
    pid = json.loads((Path(device.folder) / "run.json").read_text())["pid"]
    for _ in range(100):
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            time.sleep(0.05)
            continue
        break
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_the_device_lacks_is_said(device: Device, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(RefusedError, match="here: python3 -m pip install numpy onnxruntime"):
        Device(folder=device.folder, python=str(bare)).probe()
    with pytest.raises(HardwareError, match="has no python4: install Python 3.9 or newer"):
        Device(folder=device.folder, python="python4").probe()
    with pytest.raises(HardwareError, match="no file can be written in /proc/dxc there"):
        Device(folder="/proc/dxc").probe()
    with pytest.raises(
        RefusedError, match=r"there is no core 4\d\d\d; hardware.affinity names cores of the device"
    ):
        Device(folder=device.folder, affinity=[0, 4001]).probe()


def test_a_processor_that_onnxruntime_is_not_made_for(tmp_path: Path) -> None:
    """A system of 32 bits has none; one that is built for newer processors ends with an illegal instruction."""
    old = tmp_path / "old"
    answer = worker.MARK + json.dumps(
        {"error": "import", "message": "No module named 'onnxruntime' (armv7l, Python 3.11.2)"}
    )
    old.write_text(f"#!/bin/sh\necho '{answer.replace(chr(39), '')}'\nexit 1\n")
    old.chmod(0o755)
    with pytest.raises(RefusedError, match=r"armv7l.*set the device up with a system of 64 bits"):
        Device(folder=str(tmp_path / "device"), python=str(old)).probe()
    old.write_text("#!/bin/sh\nkill -ILL $$\n")
    with pytest.raises(HardwareError, match="illegal instruction: this onnxruntime is for other processors"):
        Device(folder=str(tmp_path / "device"), python=str(old)).probe()


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("pi@x: Permission denied (publickey).", "ssh-copy-id pi@x"),
        ("Host key verification failed.", "compare its key: ssh pi@x"),
        ("ssh: Could not resolve hostname x: Name or service not known", "is the address right"),
    ],
)
def test_a_host_that_cannot_be_reached(
    said: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 255\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UnreachableError, match=advice):
        Device("pi@x").probe()


@pytest.mark.parametrize(
    "host", ["", "a b", "-oProxyCommand=true", "pi@", "ssh://pi@x", "x;true", "pi@-x", "$(true)"]
)
def test_what_is_no_host(host: str) -> None:
    assert not is_host(host)
    with pytest.raises(ConfigError, match=r"hardware\.host must read user@address"):
        module.check_host(host)


@pytest.mark.parametrize("host", ["pi@raspberrypi.local", "192.168.4.1", "pi@fe80::1%eth0", "board_3"])
def test_what_is_a_host(host: str) -> None:
    assert is_host(host)


def test_the_worker_is_one_file_for_python_3_9() -> None:
    """It imports nothing of dxc, and has no syntax that is newer."""
    import ast

    text = Path(worker.__file__).read_text()
    tree = ast.parse(text, feature_version=(3, 9))
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
        )
    }
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
    assert hashlib.sha256(text.encode()).hexdigest()[:12] in Device()._worker
