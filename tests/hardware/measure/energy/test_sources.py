"""Meters that are simulated: a server that speaks the SmartPower 2's protocol, a serial line, files of a kernel."""

from __future__ import annotations

import os
import pty
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.errors import ConfigError, HardwareError
from dxc.hardware.measure.energy import smartpower2
from dxc.hardware.measure.energy.counters import Hwmon, Nvml, Rapl
from dxc.hardware.measure.energy.metering import metered
from dxc.hardware.measure.energy.protocol import Window
from dxc.hardware.measure.energy.smartpower2 import SmartPower2, reading
from dxc.hardware.measure.energy.sources import opened

BOOT = b"\r\n\x00\xff ets Jan  8 2013,rst cause:4\r\nload 0x4010f000, len 1264\r\nSmartPower2\r\nIP: 192.168.4.1\r\n"


def _line(watt: float) -> bytes:
    return b"5.000,%.3f,%.3f,0.001\r\n" % (watt / 5, watt)


@pytest.mark.parametrize(
    ("line", "watt"),
    [
        ("5.095,0.512,2.609,12.345\r\n", 2.609),
        ("5.095,0.000,0.000,0.000", 0.0),
        ("5.095,0.512,2.609", None),
        ("95,0.512,2.609,12.345", None),
        ("5.095,0.512,9.609,12.345", None),  # 5.1 V x 0.5 A are no 9.6 W: half a line
        ("95.095,0.512,48.7,0.1", None),
        ("connected 5.095,0.512,2.609,12.345", None),
        ("nan,nan,nan,nan", None),
        ("", None),
    ],
)
def test_lines_of_the_meter(line: str, watt: float | None) -> None:
    found = reading(line)
    assert (found and found.watt) == watt if watt is None else found is not None and found.watt == watt


class Meter:
    """A SmartPower 2 on 127.0.0.1, quicker than a real one: `script` gets each client in turn."""

    def __init__(self, script: Callable[[socket.socket, int], None]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._script, self.clients = script, 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client:
                try:
                    self.clients += 1
                    self._script(client, self.clients)
                except OSError:
                    pass  # the client has gone

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Meter]]:
    made: list[Meter] = []
    for name in ("SILENT_SECONDS", "RECONNECT_SECONDS"):
        monkeypatch.setattr(smartpower2, name, {"SILENT_SECONDS": 0.6}.get(name, 0.05))

    def make(script: Callable[[socket.socket, int], None]) -> Meter:
        made.append(Meter(script))
        return made[-1]

    yield make
    for each in made:
        each.close()


def _until(condition: Callable[[], bool], seconds: float = 8) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_a_meter_among_debug_lines_gaps_and_lost_connections(meter: Callable[..., Meter]) -> None:
    """Each client hears boot lines, some readings, nonsense and half a line; then the meter falls silent for the first
    one and hangs up on the second one."""

    def script(client: socket.socket, number: int) -> None:
        client.sendall(BOOT)
        for place in range(4):
            watt = number + place / 10
            client.sendall(b"dbg: adc 1234\r\n" + _line(watt)[:9])
            time.sleep(0.02)
            client.sendall(_line(watt)[9:] + b"9.99,9.99\r\n")
            time.sleep(0.03)
        if number == 1:
            client.recv(1)  # silent, until it hangs up
        if number > 2:
            while True:
                client.sendall(_line(9.0))
                time.sleep(0.05)

    server = meter(script)
    before = time.monotonic()
    with SmartPower2("127.0.0.1", server.port) as source:
        _until(lambda: [each.watt for each in source.samples()].count(9.0) > 2)
        samples = source.samples()
    assert [each.watt for each in samples if each.watt < 9] == pytest.approx(
        [number + place / 10 for number in (1, 2, 3) for place in range(4)]
    )
    times = [each.time_s for each in samples]
    assert times == sorted(times) and before < times[0] and times[-1] < time.monotonic()
    assert server.clients == 3
    count = len(source.samples())
    time.sleep(0.2)
    assert len(source.samples()) == count  # closed


def test_readings_that_were_held_up_are_a_second_apart(meter: Callable[..., Meter]) -> None:
    def script(client: socket.socket, number: int) -> None:
        client.sendall(_line(1.0))
        time.sleep(0.3)
        client.sendall(_line(2.0) + _line(3.0) + _line(4.0))
        time.sleep(3)

    server = meter(script)
    smartpower2.SILENT_SECONDS = 5.0  # restored by the fixture
    smartpower2.PERIOD_SECONDS, usual = 0.1, smartpower2.PERIOD_SECONDS
    try:
        with SmartPower2("127.0.0.1", server.port) as source:
            _until(lambda: len(source.samples()) >= 4)
    finally:
        smartpower2.PERIOD_SECONDS = usual
    (_, *held) = source.samples()
    assert [each.watt for each in held] == [2.0, 3.0, 4.0]
    assert held[1].time_s - held[0].time_s == pytest.approx(0.1) == held[2].time_s - held[1].time_s


def test_a_serial_line() -> None:
    master, slave = pty.openpty()
    stop = threading.Event()

    def speak() -> None:
        os.write(master, BOOT)
        while not stop.wait(0.05):
            os.write(master, _line(2.5))

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        with SmartPower2(serial=os.ttyname(slave)) as source:
            _until(lambda: len(source.samples()) >= 3)
        assert {each.watt for each in source.samples()} == {2.5}
    finally:
        stop.set()
        thread.join(5)
        os.close(master)
        os.close(slave)


def _nonsense(client: socket.socket, number: int) -> None:
    while True:
        client.sendall(b"HTTP/1.0 400 \x1b[2J Bad\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (lambda client, number: time.sleep(1.2), "is connected and silent. Is its output on"),
        (
            _nonsense,
            r"and none is volt,ampere,watt,watthour; the last is 'HTTP/1.0 400 \\x1b[2J Bad'. Is its output on",
        ),
        (
            lambda client, number: None,
            "closed the connection. Is its output on, is this machine in its network",
        ),
    ],
)
def test_a_meter_that_gives_nothing(
    meter: Callable[..., Meter], script: Callable[[socket.socket, int], None], message: str
) -> None:
    server = meter(script)
    with pytest.raises(HardwareError) as caught, SmartPower2("127.0.0.1", server.port, patience_s=1.0):
        pass
    assert str(caught.value).startswith("SmartPower 2 gave no sample in 1 s: 127.0.0.1:")
    assert message in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_no_meter_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        pytest.raises(HardwareError, match="Connection refused"),
        SmartPower2("127.0.0.1", port, patience_s=0.3),
    ):
        pass
    with (
        pytest.raises(HardwareError, match=r"tty: No such file or directory\. Is it the meter's line"),
        SmartPower2(serial=str(tmp_path / "tty"), patience_s=0.3),
    ):
        pass
    (tmp_path / "file").write_text("5.000,1.000,5.000,0.001\n")
    with (
        pytest.raises(HardwareError, match="file is not a serial line"),
        SmartPower2(serial=str(tmp_path / "file"), patience_s=0.3),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs energy.address .* or energy.serial"),
        ({"address": "192.168.4.1", "serial": "/dev/ttyUSB0"}, "one of the two"),
        (
            {"address": "-oProxyCommand=x"},
            "energy.address must be a name or an IP address, not '-oProxyCommand=x'",
        ),
        ({"address": "a b"}, "must be a name or an IP address"),
        ({"address": "192.168.4.1", "port": 0}, "energy.port must be a whole number from 1 to 65535, not 0"),
        (
            {"address": "192.168.4.1", "port": True},
            "energy.port must be a whole number from 1 to 65535, not True",
        ),
        ({"address": "192.168.4.1", "patience_s": "long"}, "energy.patience_s must be a number above 0"),
        (
            {"address": "192.168.4.1", "patience_s": float("nan")},
            "energy.patience_s must be a number above 0",
        ),
        ({"adress": "192.168.4.1"}, "adress"),
    ],
)
def test_values_that_cannot_work(values: dict, message: str) -> None:
    target = "dxc.hardware.measure.energy.smartpower2.SmartPower2"
    with pytest.raises(ConfigError, match=message):
        opened({"_target_": target, **values})


def _zone(folder: Path, number: str, name: str, value: int, greatest: int = 1_000_000) -> Path:
    zone = folder / f"intel-rapl:{number}"
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "max_energy_range_uj").write_text(f"{greatest}\n")
    (zone / "energy_uj").write_text(f"{value}\n")
    return zone / "energy_uj"


def test_rapl_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packages and their memory; the cores are in the package; one counter begins again at 0."""
    first = _zone(tmp_path, "0", "package-0", 900_000)
    second = _zone(tmp_path, "1", "package-1", 0)
    memory = _zone(tmp_path, "0:1", "dram", 0)
    core = _zone(tmp_path, "0:0", "core", 0)
    now = [100.0]
    monkeypatch.setattr(
        "dxc.hardware.measure.energy.counters.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    source = Rapl(str(tmp_path))
    source._begin()
    assert source._read() is None
    for file, value in ((first, 99_999), (second, 300_000), (memory, 100_000), (core, 500_000)):
        file.write_text(str(value))
    now[0] = 100.1
    assert source._read() == pytest.approx((200_000 + 300_000 + 100_000) / 1e6 / 0.1)


def test_rapl_runs_and_is_missed_where_there_is_none(tmp_path: Path) -> None:
    counter = _zone(tmp_path / "there", "0", "package-0", 0, 10**12)
    with Rapl(str(tmp_path / "there"), rate_hz=50) as source:
        counter.write_text("50000")
        _until(lambda: any(each.watt > 0 for each in source.samples()))
    with (
        pytest.raises(HardwareError, match=r"holds no RAPL counter .* Virtual machines"),
        Rapl(str(tmp_path)),
    ):
        pass
    counter.write_text("")
    with pytest.raises(HardwareError, match="energy_uj cannot be read"), Rapl(str(tmp_path / "there")):
        pass


def _sensor(folder: Path, number: int, name: str, **files: int) -> None:
    place = folder / f"hwmon{number}"
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    for file, value in files.items():
        (place / file).write_text(f"{value}\n")


def test_current_sensors(tmp_path: Path) -> None:
    _sensor(tmp_path, 0, "coretemp", temp1_input=45000)
    _sensor(tmp_path, 1, "ina219", power1_input=2_345_000, in1_input=5000, curr1_input=469)
    with Hwmon(folder=str(tmp_path), rate_hz=100) as source:
        _until(lambda: len(source.samples()) > 2)
    assert {each.watt for each in source.samples()} == {2.345} and source.name == "hwmon ina219"
    _sensor(tmp_path, 2, "ina226", in1_input=5100, curr1_input=500)
    with Hwmon("ina226", folder=str(tmp_path), rate_hz=100) as source:
        assert source.samples()[0].watt == pytest.approx(2.55)
    with (
        pytest.raises(HardwareError, match=r"has 2 sensors ina\.\.\.; there are: coretemp, ina219, ina226"),
        Hwmon(folder=str(tmp_path)),
    ):
        pass


def _nvml(watts: list[float]) -> SimpleNamespace:
    class NVMLError(Exception):
        pass

    def power(board: int) -> float:
        if not watts:
            raise NVMLError("Not Supported")
        return watts[0] * 1000

    return SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda number: number, nvmlDeviceGetName=lambda board: b"NVIDIA X",
        nvmlDeviceGetPowerUsage=power,
    )  # fmt: skip


def test_power_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml([123.4]))
    with Nvml(rate_hz=100) as source:
        _until(lambda: len(source.samples()) > 2)
    assert source.samples()[0].watt == pytest.approx(123.4) and source.name == "NVML NVIDIA X"
    with pytest.raises(HardwareError, match=r"energy\.gpu=3: there are 1 GPUs"), Nvml(3):
        pass
    monkeypatch.setitem(sys.modules, "pynvml", _nvml([]))
    with pytest.raises(HardwareError, match="energy=nvml: Not Supported"), Nvml():
        pass
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(HardwareError, match="needs the package nvidia-ml-py"), Nvml():
        pass


def test_a_meter_that_stops_makes_an_invalid_figure(tmp_path: Path) -> None:
    counter = _zone(tmp_path, "0", "package-0", 0)
    begin = time.monotonic()
    with Rapl(str(tmp_path), rate_hz=50) as source:
        counter.unlink()
        _until(lambda: source._crash is not None)
        windows = [Window("load", begin + 40 * place, begin + 40 * place + 39, 10, 39) for place in range(3)]
        found = metered(source, windows, latency_ms=1.0)
    assert not found.energy.valid and "no sample for" in found.energy.reason
    assert found.samples == source.samples()


@pytest.mark.parametrize("name", ["none", "smartpower2", "rapl", "nvml", "hwmon", "csv"])
def test_files_of_the_group(name: str) -> None:
    """Each is the argument list of its class, with the class's own defaults."""
    needed = {"smartpower2": ["energy.address=192.168.4.1"], "csv": ["energy.file=power.csv"]}.get(name, [])
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        section = resolved(compose(overrides=[f"+energy={name}", *needed]))["energy"]
    source = opened(section)
    if source is None:
        assert name == "none"
        return
    given = {key: section[key] for key in ("address", "file") if key in section}
    plain = type(source)(**given)
    assert {key: str(value) for key, value in vars(source).items() if not key.startswith("_")} == {
        key: str(value) for key, value in vars(plain).items() if not key.startswith("_")
    }
    if source.of_this_machine:
        with pytest.raises(
            ConfigError, match="meters the machine that it runs on, not hardware.host=pi@there"
        ):
            opened(section, host="pi@there")
    else:
        assert opened(section, host="pi@there") is not None
