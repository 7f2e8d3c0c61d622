"""Times a deployment beside a bare loop of session.run on the same machine, and counts the bytes of a front of ten.

    python benchmarks/deploy.py                  about 5 minutes

Both run one MobileNet-v1 over 10,000 images of 32 x 32 pixels three times, one at a time, each in a fresh process. They
take turns. The bare loop has its images ready in memory, and no clock inside. Three ratios to its wall time:
    loop      the worker's repeats: the clock around each run, answers kept, events
    worker    the worker's process from its start to its end: imports, images, warm-up, results on disk
    device    all that the device is asked for: copying, run, fetching
and beside them, which other work on the machine does not disturb:
    outside   share of the worker's repeats that is not inside session.run: the clock, images, answers, events
Medians over rounds. Bytes are those of files that go to the device: the test set once, and each of ten networks.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _record import save

from dxc.deploy.device import Device, Payload
from dxc.deploy.export import export_onnx
from dxc.deploy.metadata import Metadata
from dxc.models.mobilenet import MobileNetV1

IMAGES, REPEATS = 10_000, 3
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
BARE = """
import sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images = np.load(sys.argv[2]).astype(np.float32)
for _ in range(100):
    session.run(None, {"image": images[:1]})
begin = time.perf_counter()
for _ in range(int(sys.argv[3])):
    for i in range(len(images)):
        session.run(None, {"image": images[i : i + 1]})
print(time.perf_counter() - begin)
"""


def network(folder: Path, width: float, number: int) -> Path:
    """A MobileNet-v1 with random weights."""
    torch.manual_seed(number)
    model = MobileNetV1(in_channels=3, num_classes=10, width=width)
    metadata = Metadata(
        channels=("red", "green", "blue"), normalise="fixed", mean=MEAN, std=STD, classes=tuple("0123456789")
    )
    return export_onnx(model, folder / f"{number}.onnx", in_channels=3, size=32, metadata=metadata).path


def file_of(array: np.ndarray, label: str) -> Payload:
    """An array as a file for a device."""
    content = io.BytesIO()
    np.save(content, array)
    return Payload(content.getvalue(), label)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (given.images, 3, 32, 32), dtype=np.uint8)
    images, labels = file_of(pixels, "images"), file_of(rng.integers(0, 10, given.images), "labels")
    rounds: dict[str, list[float]] = {"loop": [], "worker": [], "device": [], "outside": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = network(folder, given.width, 0)
        (folder / "images.npy").write_bytes(images.content)
        device = Device(folder=str(folder / "device"))
        device.put(images)
        device.put(labels)
        ms = 0.0
        for number in range(given.rounds):
            command = [sys.executable, "-c", BARE, str(file), str(folder / "images.npy"), str(REPEATS)]
            bare = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            begin = time.perf_counter()
            sent = Payload(file.read_bytes(), "network")
            device.put(sent)
            request = {
                "key": f"{number:012x}", "attempt": "", "network": sent.sha256, "images": images.sha256,
                "labels": labels.sha256, "prepared": False, "repeats": REPEATS, "seconds": 0, "idle_seconds": 0,
            }  # fmt: skip
            started = time.perf_counter()
            record = device.run(request, lambda event, at_s: None)
            ended = time.perf_counter()
            for each, about in record["files"].items():
                device.fetch(request["key"], each, about)
            rounds["loop"].append(sum(each["seconds"] for each in record["repeats"]) / bare - 1)
            inside = sum(each["inference_seconds"] for each in record["repeats"])
            rounds["outside"].append(1 - inside / sum(each["seconds"] for each in record["repeats"]))
            rounds["worker"].append((ended - started) / bare - 1)
            rounds["device"].append((time.perf_counter() - begin) / bare - 1)
            ms = 1000 * bare / (REPEATS * given.images)
            print(
                f"round {number + 1}: bare {bare:.2f} s, "
                + ", ".join(f"{k} {v[-1]:+.1%}" for k, v in rounds.items())
            )
        front = Device(folder=str(folder / "another"))
        files = [network(folder, 0.1 * number, number) for number in range(1, 11)]
        plain = sum(path.stat().st_size for path in files)
        for path in files:  # as a deployment does it: images, labels, network
            for part in (images, labels, Payload(path.read_bytes(), "network")):
                front.put(part)
    overhead = {key: statistics.median(values) for key, values in rounds.items()}
    print(
        f"{given.images:,} images x {REPEATS}, {ms:.3f} ms an image: "
        + ", ".join(f"{k} {v:+.1%}" for k, v in overhead.items())
    )
    whole = front.sent_bytes / 1e6
    print(
        f"ten networks: {whole:.1f} MB sent; networks {plain / 1e6:.1f} MB, "
        f"images {len(images.content) / 1e6:.1f} MB as bytes"
    )
    if given.save:
        save(
            "deploy",
            {
                "images": given.images,
                "ms": ms,
                "overhead": overhead,
                "sent_mb": whole,
                "networks_mb": plain / 1e6,
            },
        )


if __name__ == "__main__":
    main()
