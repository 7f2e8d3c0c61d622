"""Meters that are read on this machine: RAPL, Linux hwmon (INA219, INA226) and NVIDIA's NVML."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from dxc.errors import HardwareError, is_whole
from dxc.hardware.measure.energy.sources import Polled


def _number(path: Path, advice: str) -> int:
    """The whole number in a file of the kernel. Raises HardwareError."""
    try:
        return int(path.read_text())
    except PermissionError as error:
        raise HardwareError(f"{path} cannot be read: {error.strerror}. {advice}") from error
    except (OSError, ValueError) as error:
        raise HardwareError(f"{path} cannot be read: {error}") from error


class Rapl(Polled):
    """The energy counters of an x86 processor (Running Average Power Limit), of this machine.

    They count the processor and its memory, not the board, its supply or its disks. Virtual machines mostly have none.
    https://docs.kernel.org/power/powercap/powercap.html

    Args:
        folder: of the kernel's power capping framework.
        rate_hz: readings a second. The counters change about 1,000 times a second.
    """

    name = "RAPL"
    of_this_machine = True
    ADVICE = (
        "Only root may read it (CVE-2020-8694): sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj until the "
        "next start"
    )

    def __init__(self, folder: str = "/sys/class/powercap", rate_hz: float = 10.0) -> None:
        super().__init__(rate_hz)
        self.folder = Path(folder)
        self._zones: list[tuple[Path, int]] = []
        self._last: tuple[float, list[int]] | None = None

    def _advice(self) -> str:
        return "energy=none goes without a meter"

    def _begin(self) -> None:
        self._last = None
        self._zones = []
        for zone in sorted(self.folder.glob("intel-rapl:*")):
            try:
                kind = (zone / "name").read_text().strip()
            except OSError:
                continue
            # a package holds its cores, but not the memory beside it; psys would count both again
            if kind.startswith("package") or kind == "dram":
                self._zones.append((zone / "energy_uj", _number(zone / "max_energy_range_uj", self.ADVICE)))
        if not self._zones:
            raise HardwareError(
                f"{self.folder} holds no RAPL counter of a processor. Virtual machines and processors other than x86 "
                "mostly have none; on a machine of its own, load the kernel module intel_rapl_msr. Without it energy "
                "is not known here: energy=none"
            )

    def _read(self) -> float | None:
        counts = [_number(path, self.ADVICE) for path, _ in self._zones]
        now, last = time.monotonic(), self._last
        self._last = (now, counts)
        if last is None:
            return None
        # a counter begins again at 0 after its greatest value
        joules = sum(
            ((count - before) % (greatest + 1)) / 1e6
            for count, before, (_, greatest) in zip(counts, last[1], self._zones, strict=True)
        )
        return joules / (now - last[0])


class Hwmon(Polled):
    """A current sensor on a bus of this machine, in the supply of the device: INA219, INA226 and their like.

    https://docs.kernel.org/hwmon/ina2xx.html

    Args:
        chip: name of the sensor, as /sys/class/hwmon/hwmonN/name gives it; None: the only one that begins with ina.
        folder: of the kernel's hardware monitors.
        rate_hz: readings a second.
    """

    name = "hwmon"

    def __init__(
        self, chip: str | None = None, folder: str = "/sys/class/hwmon", rate_hz: float = 10.0
    ) -> None:
        super().__init__(rate_hz)
        self.chip, self.folder = chip, Path(folder)
        self._sensor: Path | None = None

    def _advice(self) -> str:
        return "Is the sensor wired, and its shunt_resistor set?"

    def _begin(self) -> None:
        found: dict[Path, str] = {}
        for each in sorted(self.folder.glob("hwmon*")):
            try:
                found[each] = (each / "name").read_text().strip()
            except OSError:
                continue
        meant = [
            each
            for each, chip in found.items()
            if (chip == self.chip if self.chip else chip.startswith("ina"))
        ]
        if len(meant) != 1:
            there = ", ".join(sorted(found.values())) or "none"
            raise HardwareError(
                f"{self.folder} has {len(meant)} sensors {self.chip or 'ina...'}; there are: {there}. Name one with "
                "energy.chip; an INA219 on a bus is made known with: echo ina219 0x40 > "
                "/sys/bus/i2c/devices/i2c-1/new_device"
            )
        self._sensor = meant[0]
        self.name = f"hwmon {found[meant[0]]}"

    def _read(self) -> float | None:
        assert self._sensor is not None
        power = self._sensor / "power1_input"
        advice = "Its owner may read it: see ls -l"
        if power.exists():
            return _number(power, advice) / 1e6  # of microwatt
        volt = _number(self._sensor / "in1_input", advice) / 1e3
        return volt * _number(self._sensor / "curr1_input", advice) / 1e3


class Nvml(Polled):
    """Power of a whole NVIDIA board of this machine, as its driver gives it (the mean of up to a second).

    It needs the package nvidia-ml-py. On some boards the driver looks at a part of the time only
    (Yang et al. 2023, arXiv:2312.02741).

    Args:
        gpu: number of the board.
        rate_hz: readings a second.
    """

    name = "NVML"
    of_this_machine = True

    def __init__(self, gpu: int = 0, rate_hz: float = 10.0) -> None:
        super().__init__(rate_hz)
        if not is_whole(gpu, 0):
            raise ValueError(f"energy.gpu must be a whole number of at least 0, not {gpu!r}")
        self.gpu = gpu
        self._nvml: Any = None
        self._board: Any = None

    def _advice(self) -> str:
        return "Does nvidia-smi show the power of this board?"

    def _begin(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise HardwareError(
                "energy=nvml needs the package nvidia-ml-py: pip install nvidia-ml-py"
            ) from error
        try:
            pynvml.nvmlInit()
            self._nvml = pynvml
            if self.gpu >= (count := pynvml.nvmlDeviceGetCount()):
                raise HardwareError(f"energy.gpu={self.gpu}: there are {count} GPUs, counted from 0")
            self._board = pynvml.nvmlDeviceGetHandleByIndex(self.gpu)
            self.name = f"NVML {_text(pynvml.nvmlDeviceGetName(self._board))}"
            pynvml.nvmlDeviceGetPowerUsage(self._board)
        except pynvml.NVMLError as error:
            raise HardwareError(f"energy=nvml: {error}. {self._advice()}") from error

    def _read(self) -> float | None:
        try:
            return self._nvml.nvmlDeviceGetPowerUsage(self._board) / 1000  # of milliwatt
        except self._nvml.NVMLError as error:
            raise HardwareError(f"energy=nvml: {error}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
