"""A network of known bandwidth on one machine: namespaces, joined by a bridge, with a token bucket on each link.

It needs root, `ip` and `tc`. Everything has a name of its own and is removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

BURST_KB = 32
"""Bytes that a link may send at once; few against what is measured."""


@dataclass(frozen=True)
class Network:
    """Namespaces, each with one interface `wire0` and an address."""

    names: tuple[str, ...]

    @property
    def prefixes(self) -> list[list[str]]:
        """Begin of a command line, for each namespace."""
        return [["ip", "netns", "exec", name] for name in self.names]

    @property
    def environment(self) -> dict[str, str]:
        return {"MASTER_ADDR": _address(0), "GLOO_SOCKET_IFNAME": "wire0"}


def missing() -> str:
    """'' where such a network can be made, else what it lacks."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if lacks := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"network namespaces need {' and '.join(lacks)} (iproute2)"
    name = f"dxc{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return "" if made.returncode == 0 else f"no network namespaces here: {made.stderr.decode().strip()}"


@contextlib.contextmanager
def network(count: int, mbit_per_second: float) -> Iterator[Network]:
    """Join so many namespaces; each sends and receives at this bandwidth.

    Args:
        count: namespaces.
        mbit_per_second: of each link, in each direction.
    """
    mark = f"dxc{os.getpid()}"
    names = tuple(f"{mark}n{number}" for number in range(count))
    switch = f"{mark}b"
    shaped = ["root", "tbf", "rate", f"{mbit_per_second}mbit", "burst", f"{BURST_KB}kb", "latency", "200ms"]
    try:
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            port = f"port{number}"
            _run("ip", "netns", "add", name)
            _run(
                "ip",
                "-n",
                switch,
                "link",
                "add",
                port,
                "type",
                "veth",
                "peer",
                "name",
                "wire0",
                "netns",
                name,
            )
            _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", name, "address", "add", f"{_address(number)}/24", "dev", "wire0")
            _run("ip", "-n", name, "link", "set", "wire0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("tc", "-n", name, "qdisc", "add", "dev", "wire0", *shaped)
            _run("tc", "-n", switch, "qdisc", "add", "dev", port, *shaped)
        yield Network(names)
    finally:
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _address(number: int) -> str:
    return f"10.213.7.{number + 1}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
