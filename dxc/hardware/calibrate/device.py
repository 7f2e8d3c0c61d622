"""Measures kernels on a device over SSH: the worker of dxc.hardware.measure times a network and its nodes there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dxc.config.hardware import Hardware
from dxc.hardware.measure.latency import TIMEOUT_SECONDS, on_device


class Timed(NamedTuple):
    """What a device says of one network: plain runs in ms, (name, operator, median ms) of each node in order of
    execution, runs of the reference network before and after in ms, and its environment."""

    ms: list[float]
    nodes: list[tuple[str, str, float]]
    reference_ms: list[float]
    environment: dict[str, Any]


@dataclass(frozen=True)
class Device:
    """A device over SSH.

    Attributes:
        hardware: host, python, threads and affinity.
        reference: the file of the network that says how fast the device is now.
        ssh_options: further options of ssh.
    """

    hardware: Hardware
    reference: bytes
    ssh_options: Sequence[str] = ()

    def time(self, network: bytes, *, seconds: float, reference_seconds: float) -> Timed:
        """Copy a network there, time it in a fresh process, and remove it.

        Args:
            network: its file.
            seconds: of its timed runs.
            reference_seconds: of those of the reference, before and after.

        Raises:
            HardwareError: the device cannot be reached, or cannot run it.
        """
        hardware = self.hardware
        assert hardware.host is not None
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / "reference.onnx", Path(folder) / "network.onnx"]
            for path, content in zip(paths, (self.reference, network), strict=True):
                path.write_bytes(content)
            request = {
                "reference": paths[0].name,
                "seconds": seconds,
                "reference_seconds": reference_seconds,
                "provider": hardware.provider,
                "threads": hardware.threads,
                "affinity": hardware.affinity or None,
                "batch": 1,
                "timeout_seconds": TIMEOUT_SECONDS,
            }
            with on_device(
                paths, hardware.host, remote_python=hardware.python, ssh_options=self.ssh_options
            ) as ask:
                answer = ask(request)
        nodes = [(str(name), str(op), float(ms)) for name, op, ms in answer["nodes"]]
        return Timed(
            [float(ms) for ms in answer["raw_ms"]],
            nodes,
            [float(ms) for ms in answer["reference_ms"]],
            dict(answer["environment"]),
        )
