"""Costs of a network that are known before training: file size, parameters, multiply-accumulates, predicted latency.

Each network is exported once, untrained, and its latency is predicted. The figures are kept in cache_dir/costs, one
small file per network and device. Figures that need trained weights (accuracy) or the device (measured latency) are
not here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dxc.bars import Steps
from dxc.config.hardware import Hardware
from dxc.errors import DxcError
from dxc.files import write_atomically
from dxc.processes import end_with_parent

if TYPE_CHECKING:
    from dxc.config.plan import Plan
    from dxc.hardware.predict.packages import Package

log = logging.getLogger(__name__)

COSTS_VERSION = 3  # names the cached files: raise it when export or prediction changes a figure
WORTH_PROCESSES = 40  # networks; fewer are exported faster than processes start
Known = dict[str, float]
"""Metrics named as in dxc.metrics.METRICS."""


class NetworkCosts:
    """Costs of networks by their hash (dxc.search.space.Identity.network), on one device.

    Attributes:
        refused: {hash: reason} for configurations that no network can be built from.
        notes: what cannot be predicted, and why.
        predicted_for: the machines that are predicted; '' where there is none.

    """

    def __init__(self, hardware: Hardware, cache_dir: Path) -> None:
        from dxc.hardware.costs import find_packages, predicted_for

        self._hardware = hardware
        self.notes: list[str] = []
        self._packages = find_packages(hardware, self.notes)
        self.predicted_for = predicted_for({each.name: each.about for each in self._packages})
        self._folder = cache_dir / "costs" / f"{hardware.name}-{_fingerprint(self._packages)}"
        self._known: dict[str, Known] = {}
        self.refused: dict[str, str] = {}

    def of(self, network: str, config: Mapping[str, Any]) -> Known:
        """Costs of one network, computed if needed. {} where the network is refused."""
        if network not in self._known and network not in self.refused:
            self.compute({network: config})
        return self._known.get(network, {})

    def compute(
        self, networks: Mapping[str, Mapping[str, Any]], *, jobs: int = 1, progress: bool = False
    ) -> None:
        """Compute the costs of networks {hash: configuration}, `jobs` at once. An interrupted call can be continued."""
        todo = self.missing(networks)
        if not todo:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with Steps(len(todo), "costs of networks", "network", shown=progress) as bar:
            if len(todo) < WORTH_PROCESSES or jobs == 1:
                for name in todo:
                    self._keep(name, _cost(networks[name], self._packages))
                    bar.update()
                return
            context = multiprocessing.get_context(
                "spawn"
            )  # a fork of a process with torch's threads can hang
            with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin) as pool:
                futures = {
                    pool.submit(_cost_alone, dict(networks[name]), self._hardware): name for name in todo
                }
                for future in as_completed(futures):
                    self._keep(futures[future], future.result())
                    bar.update()

    def missing(self, networks: Iterable[str]) -> list[str]:
        """Those of these networks whose costs were never computed."""
        wanted = list(networks)
        for name in wanted:
            if name not in self._known and name not in self.refused:
                self._read(name)
        return [name for name in wanted if name not in self._known and name not in self.refused]

    def _path(self, network: str) -> Path:
        return self._folder / f"{network}.json"

    def _read(self, network: str) -> None:
        try:
            content = json.loads(self._path(network).read_text())
        except (OSError, ValueError):
            return
        self._take(network, content)

    def _keep(self, network: str, content: dict[str, Any]) -> None:
        write_atomically(self._path(network), json.dumps(content))
        self._take(network, content)

    def _take(self, network: str, content: dict[str, Any]) -> None:
        if "refused" in content:
            self.refused[network] = content["refused"]
        else:
            self._known[network] = content


def over_limits(known: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """A sentence for each cost that exceeds its limit. An unknown cost exceeds no limit."""
    return [
        f"{name} {known[name]:.4g} is over the limit of {limit:g} (search.limits.{name})"
        for name, limit in limits.items()
        if name in known and known[name] > limit
    ]


def _fingerprint(packages: list[Package]) -> str:
    """A hash of what the figures depend on besides the network: the predictors and how dxc reads them."""
    about = [(each.name, json.dumps(each.about, sort_keys=True, default=str)) for each in packages]
    return hashlib.blake2b(json.dumps([COSTS_VERSION, about]).encode(), digest_size=4).hexdigest()


@cache
def _packages_of_process(hardware: str) -> list[Package]:
    from dxc.hardware.costs import find_packages

    return find_packages(Hardware.model_validate_json(hardware), [], progress=False)


def _begin() -> None:
    """Initialise a process of the pool."""
    end_with_parent()
    import torch

    torch.set_num_threads(1)  # as many processes as cores


def _cost_alone(config: dict[str, Any], hardware: Hardware) -> dict[str, Any]:
    """_cost in a process of its own, which reads the packages once."""
    return _cost(config, _packages_of_process(hardware.model_dump_json()))


def _cost(config: Mapping[str, Any], packages: list[Package]) -> dict[str, Any]:
    """Costs of the network of a configuration for one image, or {"refused": why}."""
    from dxc.config.plan import Plan
    from dxc.deploy.export import count_macs, count_params, export_onnx
    from dxc.deploy.metadata import Metadata
    from dxc.hardware.costs import predict_all
    from dxc.hardware.predict.predict import latency_metrics

    try:
        plan = Plan.of(config)
        size, in_channels = plan.data.image_size, plan.model.in_channels
        # its file says as much as the trained one's, in as many bytes; it has no identity
        metadata = Metadata(channels=tuple(plan.data.channels), classes=tuple(plan.data.classes))
        model = untrained_network(plan)
        _as_if_trained(model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            exported = export_onnx(
                model, path, in_channels=in_channels, size=size, metadata=metadata, check=False
            )
            onnx_mb, latency = exported.onnx_mb, {}
            if plan.compress.quantises:
                from dxc.compress.quantise import quantise

                images = np.zeros((1, in_channels, size, size), np.float32)
                onnx_mb = quantise(path, path, plan.compress.quantise, images).onnx_mb
            if plan.compress.quantise != "dynamic":  # whose kernels no predictor describes
                latency = latency_metrics(predict_all(path, packages))
        return {
            "onnx_mb": onnx_mb,
            "params": count_params(model),
            "macs": count_macs(model, in_channels=in_channels, size=size),
            **latency,
        }
    except DxcError as error:
        return {"refused": str(error)}


def untrained_network(plan: Plan) -> Any:
    """A network of the shape that a plan's has in the end: pruned, where it is. Its weights are random.

    Raises:
        DxcError: no such network can be built.
    """
    compress, size = plan.compress, plan.data.image_size
    model = plan.model.build()
    model.check_input_size(size)
    if not compress.prunes:
        return model
    from dxc.compress.prune import pruned

    return pruned(model, compress.fraction, align=compress.align, image_size=size)


def _as_if_trained(model: Any) -> None:
    """Give every layer different biases. The exporter would share equal ones, which changes the file."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.1)
