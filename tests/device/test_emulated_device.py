"""Networks on an aarch64 machine under QEMU, over SSH: answers as here, and nothing is lost whatever breaks.

Its times say nothing of a real device. `make test-device` runs this; DXC_EMULATED_DEVICE names the folder that the
machine lies in.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from dxc.config.compose import PROJECT_ROOT
from dxc.deploy import device as device_module
from dxc.deploy.device import Device, Payload, RefusedError, UnreachableError
from dxc.report.deployment import print_deployment
from dxc.synthetic.images import SyntheticImages
from tests.deployment import metered
from tests.deployment.conftest import study, trained_study  # noqa: F401  # fixtures
from tests.deployment.studies import artifacts_of, deployed, tracked_runs

pytestmark = pytest.mark.device
HERE = Path(__file__).parent
HOST = "root@127.0.0.1"
MEAN, STD = (
    np.array(each, np.float32).reshape(1, 3, 1, 1) for each in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
)


HAS_VNNI = "vnni" in Path("/proc/cpuinfo").read_text()


def _answers_here(path: Path, fed: np.ndarray, *, fused: bool) -> np.ndarray:
    """The scores of a network on this machine.

    Args:
        path: of its file.
        fed: images as it is fed with them.
        fused: whether ONNX Runtime may join operators.
    """
    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": fed[i : i + 1]})[0] for i in range(len(fed))])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Wire:
    """A way to a port that can be cut: after a number of bytes to the device, or at once."""

    to: int
    port: int = field(default_factory=_free_port)
    cut_after: int | None = None
    _open: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self.to))
            self._open += [here, there]
            for source, target in ((here, there), (there, here)):
                threading.Thread(
                    target=self._carry, args=(source, target, source is here), daemon=True
                ).start()

    def _carry(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        try:
            while content := source.recv(16384):
                if counts and self.cut_after is not None:
                    self.cut_after -= len(content)
                    if self.cut_after < 0:
                        self.cut_after = None
                        self.cut()
                        return
                target.sendall(content)
        except OSError:
            pass
        for each in (source, target):
            each.close()

    def cut(self) -> None:
        """Close every connection that goes over it."""
        ends, self._open = self._open, []
        for each in ends:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        """Let nobody through any more."""
        self._server.close()
        self.cut()


@dataclass(frozen=True)
class Emulated:
    """The machine: the port of its sshd, the folder with the keys, and its files."""

    port: int
    folder: Path
    system: Path
    """Its root, as this machine sees it."""

    def options(self, port: int | None = None) -> list[str]:
        return [
            "-F", "none", "-p", str(port or self.port), "-i", str(self.folder / "user"), "-o", "IdentitiesOnly=yes",
            "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={self.folder}/known", "-o", "LogLevel=ERROR",
        ]  # fmt: skip

    def device(self, folder: str, **more: Any) -> Device:
        return Device(HOST, **{"folder": folder, "ssh_options": self.options(), **more})


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    home = Path(os.environ.get("DXC_EMULATED_DEVICE", PROJECT_ROOT / "cache" / "emulated-device"))
    if os.geteuid() != 0:
        pytest.skip("an emulated device needs root, for a namespace with users of its own")
    needed = ("apt-get", "dpkg", "perl", "unshare", "chroot", "ssh", "ssh-keygen")
    if missing := [name for name in needed if shutil.which(name) is None]:
        pytest.skip(f"an emulated device needs {', '.join(missing)}")
    if not (home / ".done").exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        built = subprocess.run([HERE / "build.sh", home], capture_output=True, text=True, timeout=1800)
        if built.returncode:
            said = " / ".join(built.stderr.strip().splitlines()[-2:])
            pytest.skip(f"the emulated device cannot be built: {said}")
    folder, port = tmp_path_factory.mktemp("emulated"), _free_port()
    for name in ("user", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with (folder / "log").open("w") as log:
        serving = subprocess.Popen(
            [HERE / "serve.sh", home, str(port), folder / "user.pub"], stdout=log, stderr=log
        )
    machine = Emulated(port, folder, home / "system")
    for _ in range(600):
        if _listens(port) or serving.poll() is not None:
            break
        time.sleep(0.1)
    if serving.poll() is not None or not _listens(port):
        serving.terminate()
        pytest.skip(f"the emulated device cannot be served: {(folder / 'log').read_text()[-300:]}")
    yield machine
    serving.terminate()
    serving.wait(20)


@pytest.fixture
def ssh(emulated: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """The program ssh reaches the machine, over a wire that can be cut."""
    wire = Wire(emulated.port)
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    options = " ".join(emulated.options(wire.port))
    script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(device_module, "PAUSE_SECONDS", 0.2)
    return wire


def test_three_networks_from_end_to_end(
    study: Path,  # noqa: F811
    ssh: Wire,
    emulated: Emulated,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """float32, dynamic and static. Copying is cut once, and the connection in the middle of a run: nothing is lost, and
    the answers are those of this machine."""
    images = SyntheticImages(
        images=240, seed=0, classes=tuple("0123456789"), cache_dir=str(study / "cache")
    ).read()
    pixels, labels = images.pixels[images.held_out], images.labels[images.held_out]
    fed = (pixels.astype(np.float32) - MEAN) / STD
    cuts: list[str] = []
    run = Device.run

    def cutting(self: Device, request: dict[str, Any], on_event: Any) -> dict[str, Any]:
        def take(event: dict[str, Any], at_s: float) -> None:
            on_event(event, at_s)
            if event.get("event") == "begin" and not cuts:
                cuts.append(request["key"])
                ssh.cut()

        return run(self, request, take)

    ssh.cut_after = 150_000  # in the middle of the images or of the first network
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "run", cutting)
        patch.setattr(
            "dxc.deployment.record.MAX_SPREAD", float("inf")
        )  # an emulated machine's times mean nothing
        with caplog.at_level("INFO", logger="dxc"):
            result = deployed(
                study, "hardware=pi", f"hardware.host={HOST}", "hardware.emulated=true", "hardware.threads=1"
            )
    assert [each.state for each in result.proofs] == ["measured"] * 3
    assert len(cuts) == 1 and ssh.cut_after is None
    assert (
        "was lost; trying again" in caplog.text and "The run goes on there; trying to reach it" in caplog.text
    )
    assert result.device.startswith("emulated, Raspberry Pi 3 Model B Plus (emulated), ")
    assert result.sent_bytes < 1_500_000
    for kind, tracked in tracked_runs(study).items():
        artifacts = artifacts_of(tracked)
        (proved,) = (artifacts / "deployed").iterdir()
        answered = np.load(proved / "scores.npy")
        expected = _answers_here(artifacts / "model.onnx", fed, fused=kind != "static" or HAS_VNNI)
        error = np.abs(answered - expected).max() / np.abs(expected).max()
        if kind == "static" and not HAS_VNNI:
            # the fused kernels of an x86 without VNNI saturate at 16 bits, so the network is computed operator by
            # operator; what remains are a few steps of rounding in 8 bits
            assert error < 0.04 and (answered.argmax(1) == expected.argmax(1)).mean() > 0.95
        elif kind == "static":
            np.testing.assert_array_equal(answered, expected)
        else:
            assert error <= 2e-6, kind
        assert tracked.data.metrics["device_accuracy"] == (answered.argmax(1) == labels).mean()
        assert tracked.data.tags["dxc.emulated"] == "true"
        assert tracked.data.tags["dxc.measured_on"] == result.device
    print_deployment(result)
    assert "emulated, Raspberry Pi" in capsys.readouterr().out


def test_the_tables_under_a_simulated_meter(
    study: Path,  # noqa: F811
    ssh: Wire,
    emulated: Emulated,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The brief's tables 1 to 3 by deploying and analyzing: all figures are there, and are called emulated and
    simulated. Their energy holds the true one."""
    metered.allow_short_windows(monkeypatch)
    events = emulated.system / "home" / "pi" / ".cache" / "dxc" / "events.jsonl"
    with metered.meter(events) as serving:
        result = metered.deployed_with(
            serving, study, "hardware=pi", f"hardware.host={HOST}", "hardware.threads=1"
        )
    assert [each.state for each in result.proofs] == ["measured"] * 3
    assert (
        result.emulated and result.meter == metered.METER
    )  # the device says so itself, hardware.emulated or not
    for tracked in tracked_runs(study).values():
        assert tracked.data.tags["dxc.emulated"] == "true"
    metered.check_energy(study)
    metered.check_tables(study, "emulated, Raspberry Pi 3 Model B Plus (emulated)")
    print_deployment(result)
    shown = capsys.readouterr().out
    assert "emulated: Raspberry Pi 3 Model B Plus (emulated)" in shown
    assert "simulated: energy and power are of a simulated meter" in shown


def test_a_disk_that_is_full(emulated: Emulated) -> None:
    device = emulated.device("/small/dxc")
    with pytest.raises(
        RefusedError, match=r"MB are needed, \d\.\d MB are free; free some space in /small/dxc there"
    ):
        device.put(Payload(np.random.default_rng(0).bytes(2_000_000), "images"))
    assert device.sent_bytes == 0


def test_a_device_without_onnxruntime(emulated: Emulated) -> None:
    device = emulated.device("/tmp/dxc", python="/usr/local/bin/python-without-packages")
    with pytest.raises(
        RefusedError, match="there: python3 -m pip install numpy onnxruntime .--break-system-packages"
    ):
        device.probe()


def test_a_wrong_host_key_and_no_key(emulated: Emulated, tmp_path: Path) -> None:
    known = tmp_path / "known"
    other = (emulated.folder / "other.pub").read_text()
    known.write_text(f"[127.0.0.1]:{emulated.port} {other}")
    options = [*emulated.options(), "-o", "StrictHostKeyChecking=yes"]
    options = [
        f"UserKnownHostsFile={known}" if each.startswith("UserKnownHostsFile") else each for each in options
    ]
    options = [each.replace("StrictHostKeyChecking=no", "StrictHostKeyChecking=yes") for each in options]
    with pytest.raises(UnreachableError, match=f"compare its key: ssh {HOST}"):
        emulated.device("/tmp/dxc", ssh_options=options).probe()
    user = str(emulated.folder / "user")
    options = [str(emulated.folder / "other") if each == user else each for each in emulated.options()]
    with pytest.raises(UnreachableError, match=f"ssh-copy-id {HOST}"):
        emulated.device("/tmp/dxc", ssh_options=options).probe()


def test_what_it_says_of_itself(emulated: Emulated) -> None:
    environment = emulated.device("/tmp/dxc").probe()["environment"]
    assert environment["machine"] == "aarch64"
    assert environment["device"].startswith("Raspberry Pi 3 Model B Plus (emulated), ")
