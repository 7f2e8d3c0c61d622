"""One rank of one run: `python -m dxc.scaling.worker FOLDER`, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT in its environment, as torchrun sets them.

FOLDER holds request.json. Rank 0 writes result.json there; a rank that fails writes error.RANK.json.

The distributed part is Lightning's DDP (Fabric with its DDPStrategy). The loop is ours and not Lightning's Trainer's,
because a run here has to keep to four things that its callbacks cannot: all ranks stop in the same step, within a
second of the time that was asked for, without waiting for the device in every step; warm-up steps leave nothing behind,
neither time nor weights; the clock stands still while a run validates; and single steps are timed with and without the
synchronisation of gradients.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dxc.config.build import build
from dxc.config.checked import Amount, Flag, Limit, Natural, Part, Positive, Text, checked
from dxc.errors import DxcError, ScalingError, first_line
from dxc.files import write_atomically
from dxc.untrusted import load_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dxc.scaling.images import Images

T = TypeVar("T")
REQUEST, RESULT = "request.json", "result.json"
LOOK_EVERY_S = 0.25
"""How often rank 0 decides whether to go on."""
LEAST_BLOCKS, MOST_BLOCKS = 3, 30
"""Of steps that are timed, for the communication."""
STEPS_A_BLOCK = 2
"""1 where the time would not do for LEAST_BLOCKS."""
SMALL_BYTES = 4
PEAKS = {
    ("cuda", "bf16-mixed"): "bf16",
    ("cuda", "16-mixed"): "fp16",
    ("cpu", "bf16-mixed"): "bf16",
    ("cpu", "32-true"): "fp32",
}
"""In which precision the peaks of a device are measured. In 32 bits a GPU has two: torch lets convolutions alone round
to TF32."""
LOOK, LAST_LOOK = -1, -2
"""What rank 0 says in place of a number of steps: validate; validate and stop."""


class Request(Part):
    """What one run is asked. Plain values, which every rank reads.

    Attributes:
        about: the images; see dxc.scaling.sources.described.
        learning_rate: after the rise, for all devices together; see Settings.lr_rule.
        rise_steps: steps over which the learning rate rises to it.
        seconds: of the timed part.
        target: accuracy that ends it; None: there is none.
        look_every_s: training time between two validations, where there is a target.
        warmup_steps: before the timed part.
        timeout_s: how long ranks wait for each other.
        simulated_step_ms: a pause in each step that stands for computation, for tests of the method.
    """

    scaling: Literal["weak", "strong"]
    nodes: Positive
    devices: Positive
    device_batch: Positive
    accelerator: Literal["cpu", "cuda"]
    backend: Literal["gloo", "nccl"]
    precision: Text
    threads: Positive
    channels_last: Flag
    model: dict[str, Any]
    optimizer: dict[str, Any]
    learning_rate: Limit
    rise_steps: Natural
    about: dict[str, Any]
    seed: Natural
    seconds: Limit
    target: Limit | None
    look_every_s: Limit
    warmup_steps: Positive
    measured_s: Amount
    timeout_s: Limit
    simulated_step_ms: Amount

    @property
    def total(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices


class Run:
    """One rank at work.

    Args:
        request: what is asked.
    """

    def __init__(self, request: Request) -> None:
        import torch
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import TorchElasticEnvironment
        from lightning_fabric.strategies import DDPStrategy

        from dxc.scaling.images import Rank
        from dxc.scaling.sources import images_of

        torch.set_num_threads(request.threads)
        self.request = request
        strategy: Any = "auto"
        if request.total > 1:
            strategy = DDPStrategy(
                cluster_environment=TorchElasticEnvironment(),
                process_group_backend=request.backend,
                timeout=datetime.timedelta(seconds=request.timeout_s),
            )
        self.fabric = Fabric(
            accelerator=request.accelerator,
            devices=request.devices,
            num_nodes=request.nodes,
            strategy=strategy,
            precision=request.precision,  # type: ignore[arg-type]
        )
        self._connect()
        self.device = self.fabric.device
        self._require_equal_devices()
        self.fabric.seed_everything(request.seed, verbose=False)
        module = build(request.model, "model")
        last = request.channels_last and not _crashes(module, request.accelerator)
        if last:
            module = module.to(memory_format=torch.channels_last)
        self.params = sum(each.numel() for each in module.parameters() if each.requires_grad)
        self.gradient_bytes = 4 * self.params
        optimizer = build(request.optimizer, "optimizer")(module.parameters())
        self.model, self.optimizer = self.fabric.setup(module, optimizer)
        rank = Rank(self.fabric.global_rank, request.total, self.device, request.seed, last)
        self.images: Images = images_of(request.about, rank)
        self.waited_s = 0.0
        self.steps = 0
        self._learns = True
        self._batches = self._waited_for(self.images.train(request.device_batch))

    def run(self) -> dict[str, Any]:
        """Warm up, train for the time, validate, measure communication. The result is the same on all ranks."""
        initial = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        first_step_s = self._time(self._step)
        for _ in range(self.request.warmup_steps - 1):
            self._step()
        self.model.load_state_dict(initial)
        self.optimizer.state.clear()
        del initial
        trained = self._train()
        if trained["accuracy"] is None:
            trained["accuracy"] = self._accuracy()
        measured = self._communication(trained["step_s"])
        left_out = set[tuple[str, str]]().union(*self._everyones(self.images.left_out))
        return {
            **trained,
            **measured,
            **self._roofline(),
            "gradient_bytes": self.gradient_bytes,
            "params": self.params,
            "skipped_images": sum(bool(key) for _, key in left_out),
            "skipped_shards": sum(not key for _, key in left_out),
            "first_step_s": first_step_s,
            "hosts": self._everyones(socket.gethostname()),
            "device_name": _device_name(self.device),
        }

    def _connect(self) -> None:
        try:
            self.fabric.launch()
        except Exception as error:
            if not _is_of_network(error):
                raise
            raise ScalingError(_unreachable(self.request, error)) from error

    def _require_equal_devices(self) -> None:
        """Raise ScalingError where one device would hold up the others."""
        names = self._everyones(_device_name(self.device))
        if len(set(names)) > 1:
            ranks = "; ".join(f"rank {number}: {name}" for number, name in enumerate(names))
            raise ScalingError(
                f"the devices are not equal: {ranks}. The slowest would hold up the others, and no speed-up would say "
                "what it means; run on equal ones"
            )

    def _everyones(self, value: T) -> list[T]:
        """A value of each rank, in their order."""
        import torch.distributed as dist

        if self.request.total == 1:
            return [value]
        found: list[Any] = [None] * self.request.total
        dist.all_gather_object(found, value)
        return found

    def _mean(self, *values: float) -> list[float]:
        """The mean over ranks of each value."""
        import torch

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        return (self._summed(tensor) / self.request.total).tolist()

    def _summed(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        if self.request.total > 1:
            dist.all_reduce(tensor)
        return tensor

    def _from_rank_0(self, value: int) -> int:
        import torch
        import torch.distributed as dist

        if self.request.total == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, 0)
        return int(tensor)

    def _sync(self) -> None:
        """Wait until the device has done what it was given."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _time(self, work: Callable[[], object]) -> float:
        self._sync()
        began = time.perf_counter()
        work()
        self._sync()
        return time.perf_counter() - began

    def _waited_for(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Add to waited_s what the next batch of a loader takes. Making images on the device is no wait."""
        while True:
            began = time.perf_counter()
            batch = next(batches)
            if self.images.waits:
                self.waited_s += time.perf_counter() - began
            yield batch

    def _step(self, batch: tuple[Tensor, Tensor] | None = None, *, synced: bool = True) -> Tensor:
        from torch.nn.functional import cross_entropy

        images, labels = next(self._batches) if batch is None else batch
        request = self.request
        risen = min(1.0, (self.steps + 1) / max(1, request.rise_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = request.learning_rate * risen * self._learns
        self.optimizer.zero_grad(set_to_none=True)
        unsynced = not synced and request.total > 1
        with self.fabric.no_backward_sync(self.model) if unsynced else contextlib.nullcontext():
            if request.simulated_step_ms:
                time.sleep(request.simulated_step_ms / 1000)
            loss: Tensor = cross_entropy(self.model(images), labels)
            self.fabric.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def _train(self) -> dict[str, Any]:
        """The timed part. Rank 0 decides how many steps follow, or to validate or stop, and all ranks hear it at once.

        A step is begun where at least half of it fits into the time that is left, so that runs of long steps are as
        close to the time as they can be.
        """
        request = self.request
        self._barrier()
        self.waited_s, self.steps = 0.0, 0
        elapsed_s, step_s, looked_s, count = 0.0, math.nan, 0.0, 0
        accuracy, reached_s = None, math.nan
        loss = None
        self._sync()
        while True:
            began = time.perf_counter()
            left_s = request.seconds - elapsed_s
            wanted = 1 if math.isnan(step_s) else round(min(LOOK_EVERY_S, left_s) / step_s)
            wanted = 0 if not math.isnan(step_s) and left_s < step_s / 2 else max(1, wanted)
            look = request.target is not None and (not wanted or elapsed_s - looked_s >= request.look_every_s)
            if look and count:
                wanted = LOOK if wanted else LAST_LOOK
            order = self._from_rank_0(wanted)
            if order == 0:
                break
            if order > 0:
                for _ in range(order):
                    loss = self._step()
                    self.steps += 1
                self._sync()
                count += order
                elapsed_s += time.perf_counter() - began
                step_s = elapsed_s / count
                continue
            looked_s = elapsed_s
            accuracy = self._accuracy()
            if accuracy is not None and request.target is not None and accuracy >= request.target:
                reached_s = elapsed_s
                break
            if order == LAST_LOOK:
                break
            accuracy = None
        if loss is None or not math.isfinite(float(loss)):
            raise ScalingError(
                f"the loss is {float(loss) if loss is not None else 'missing'} after {count} steps: the learning "
                f"rate of {request.learning_rate:g} is too high for this network; set a smaller optimizer.lr"
            )
        everyones = [float(each) for each in self._everyones(f"{elapsed_s:.6f}")]
        waited_s = self._mean(self.waited_s)[0]
        return {
            "images_per_second": request.total * request.device_batch * count / everyones[0],
            "wall_seconds": everyones[0],
            "wall_spread_s": max(everyones) - min(everyones),
            "steps": count,
            "step_s": everyones[0] / count,
            "loader_s": waited_s / count,
            "seconds_to_accuracy": reached_s if math.isfinite(reached_s) else None,
            "accuracy": accuracy,
        }

    def _barrier(self) -> None:
        self.fabric.barrier()

    def _accuracy(self) -> float | None:
        """Over the validation images of all ranks; None where there are none."""
        import torch

        self.model.eval()
        right = torch.zeros(2, dtype=torch.float64, device=self.device)
        # the bare module: DDP would have all ranks take equally many batches
        module = self.model.module
        with torch.no_grad(), self.fabric.autocast():
            for images, labels in self.images.validation(self.request.device_batch):
                right[0] += (module(images).argmax(1) == labels).sum()
                right[1] += len(labels)
        self.model.train()
        found, count = self._summed(right).tolist()
        return found / count if count else None

    def _communication(self, step_s: float) -> dict[str, Any]:
        """Time a step with and without synchronisation, and bare all-reduces of as many bytes, in turn.

        On several devices the first step of each kind is not timed: after a step without synchronisation the buffers
        of batch normalisation are not sent either. A block is one value; all ranks' mean.
        """
        import torch
        import torch.distributed as dist

        request = self.request
        if not request.measured_s:
            return {}
        self._learns = False  # ranks that are not synchronised would drift apart
        batch = next(self._batches)
        several = request.total > 1
        steps, blocks = measured_blocks(request.measured_s, step_s, several)
        steps, blocks = self._from_rank_0(steps), self._from_rank_0(blocks)
        sizes = sorted({SMALL_BYTES, 4 * (self.gradient_bytes // 16), self.gradient_bytes}) if several else []
        room = torch.zeros(self.gradient_bytes // 4, device=self.device)
        synced, alone, reduced = [], [], {size: [] for size in sizes}  # type: ignore[var-annotated]

        def timed(synced: bool) -> float:
            if several:
                self._step(batch, synced=synced)
            self._barrier()
            return self._time(lambda: [self._step(batch, synced=synced) for _ in range(steps)]) / steps

        for _ in range(blocks):
            if several:
                synced.append(timed(True))
            alone.append(timed(False))
            for size in sizes:
                part = room[: size // 4]
                dist.all_reduce(part)  # all ranks are here, and buffers are there
                reduced[size].append(self._time(lambda part=part: dist.all_reduce(part)))  # type: ignore[misc]
        compute_s, compute_error_s = self._middle(alone)
        found: dict[str, Any] = {
            "compute_s": compute_s, "compute_error_s": compute_error_s, "measured_blocks": blocks,
            "synced_s": compute_s, "synced_error_s": compute_error_s, "reduced": [],
        }  # fmt: skip
        if several:
            found["synced_s"], found["synced_error_s"] = self._middle(synced)
            found["reduced"] = [(size, *self._middle(reduced[size])) for size in sizes]
        return found

    def _roofline(self) -> dict[str, float]:
        """The least time of a step by the peaks of this device, measured while all ranks measure theirs; {} where they
        are not known."""
        import torch

        from dxc.hardware.schedule.roofline import measure_peaks, training_step_s

        request, about = self.request, self.request.about
        precision = PEAKS.get((request.accelerator, request.precision))
        if precision is None or request.simulated_step_ms or not request.measured_s:
            return {}
        with torch.device("meta"):
            network = build(request.model, "model")
            images = torch.empty(request.device_batch, about["channels"], about["size"], about["size"])
        self._barrier()
        least_s = math.nan
        with contextlib.suppress(
            torch.OutOfMemoryError
        ):  # the network may have left no room for large matrices
            least_s = training_step_s(network, images, measure_peaks(self.device, precision), precision)
        least_s = self._mean(least_s)[0]
        return {"least_step_s": least_s} if math.isfinite(least_s) else {}

    def _middle(self, seconds: list[float]) -> tuple[float, float]:
        """Median of the ranks' means, and its standard error from the quartiles: machines pause now and then."""
        import numpy as np

        means = np.array(self._mean(*seconds))
        q25, median, q75 = np.quantile(means, [0.25, 0.5, 0.75])
        return float(median), float(1.2533 * (q75 - q25) / 1.349 / len(means) ** 0.5)


def measured_blocks(measured_s: float, step_s: float, several: bool) -> tuple[int, int]:
    """Into how many blocks the time for measuring communication is divided.

    Args:
        measured_s: the time, in seconds. Slow steps take longer: there are LEAST_BLOCKS.
        step_s: of a step.
        several: whether there are several devices: two kinds of steps then, each with one that is not timed, and
            all-reduces, which take as long as a kind of steps at most.

    Returns:
        Timed steps of a kind in a block, and blocks.
    """
    blocks = 0
    for steps in (STEPS_A_BLOCK, 1):
        blocks = int(measured_s / (step_s * (3 * (steps + 1) if several else steps)))
        if blocks >= LEAST_BLOCKS:
            return steps, min(MOST_BLOCKS, blocks)
    return 1, LEAST_BLOCKS


def _crashes(module: torch.nn.Module, accelerator: str) -> bool:
    from dxc.training.trainer import breaks_in_channels_last

    return accelerator == "cpu" and breaks_in_channels_last(module)


def _device_name(device: torch.device) -> str:
    import torch

    from dxc.hardware.spec import device_name

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device_name()


def _is_of_network(error: BaseException) -> bool:
    import torch.distributed as dist

    return isinstance(
        error, dist.DistNetworkError | dist.DistStoreError | TimeoutError | ConnectionError
    ) or (
        "timed out" in str(error).lower()
        or "timeout" in str(error).lower()
        or "connect" in str(error).lower()
    )


def _unreachable(request: Request, error: BaseException) -> str:
    address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    return (
        f"found no {request.total} ranks at {address} "
        f"within {request.timeout_s:g} s: {first_line(error)}\n"
        "See whether the nodes reach each other at this address, that no firewall is between them, and which interface "
        "they use (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); timeout_seconds= waits longer"
    )


def run_rank(folder: Path) -> None:
    """Do one rank's part of the run in `folder`. What goes wrong is written there before it is raised."""
    number = int(os.environ.get("RANK", "0"))
    try:
        request = checked(Request, load_json(folder / REQUEST))
        began = time.perf_counter()
        run = Run(request)
        ready_s = time.perf_counter() - began
        result = run.run()
        if run.fabric.global_rank == 0:
            answer = {**result, "ready_s": ready_s, "total_s": time.perf_counter() - began}
            write_atomically(folder / RESULT, json.dumps(answer, allow_nan=False))
        _leave(request)
    except BaseException as error:
        network = not isinstance(error, DxcError) and _is_of_network(error)
        about = {
            "rank": number,
            "host": socket.gethostname(),
            "message": str(error)
            if isinstance(error, DxcError)
            else f"{type(error).__name__}: {first_line(error)}",
            "clear": isinstance(error, DxcError),
            "follows": network,
        }
        with contextlib.suppress(OSError):
            write_atomically(folder / f"error.{number}.json", json.dumps(about))
        raise


def _leave(request: Request) -> None:
    import torch.distributed as dist

    if request.total > 1 and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def main(arguments: list[str]) -> int:
    """The command."""
    if len(arguments) != 1:
        print("usage: python -m dxc.scaling.worker FOLDER", file=sys.stderr)
        return 2
    run_rank(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
