"""Runs exported networks over a test set on a device: `python3 worker.py VERB FOLDER REQUEST`, with REQUEST as JSON.

It needs only Python 3.9, numpy and onnxruntime, because dxc.deploy.device copies this one file to a device and runs it
there. Where it does what dxc/hardware/measure/worker.py does, it repeats it: each of the two travels alone.
It answers with lines of JSON that begin with MARK.

    probe     what the device is: versions, processor, memory, free space
    listing   which objects it has, whole or cut
    receive   stdin becomes an object, a file named by the SHA-256 of its content; what was cut goes on where it ended
    hold      keeps the lock of the device until stdin ends; others wait for it
    run       runs one network over all images, and leaves one result
    stop      ends a run
    show      writes a file of a result to stdout
    drop      removes objects and results

A run, with idle windows only where power is metered:

    empty process | session, one image | images in memory | warm-up | idle | load 1 | load 2 | ... | idle | result
    ^ baseline    ^ peak of memory                                   each load: all images, until `seconds` are over

Only session.run is inside the clock. The begin and the end of each window is an event, a line on stdout. A run goes on
when the connection ends. Asked for again, it is followed, or its result is there. A result appears when it is complete.

FOLDER holds objects/, results/KEY/ (record.json, output files, times.bin), run.json, events.jsonl and two locks.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from typing import Any, Callable, Iterator, Sequence

FORMAT = 1
MARK = "dxc-device:"  # begins each line of an answer, because libraries and shells may print other lines
CHUNK = 1 << 20
SPARE_BYTES = 4_000_000  # room for results and logs beside what is copied
MEMORY_SHARE = 0.5  # of the memory that is free: images that need more are read in blocks
WARM_UP_SECONDS = 0.3
WARM_UP_RUNS = 5
PROGRESS_SECONDS = 10.0
POLL_SECONDS = 0.1
TIMEOUT_SECONDS = 12 * 3600  # nobody ends a run on a device whose connection is lost


class Refused(Exception):
    """A fault that the user can mend. Its kind tells dxc.deploy.device which advice to give."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def say(content: dict[str, Any]) -> None:
    """Write one line of an answer. A connection that is gone is no reason to stop."""
    line = "\n" + MARK + json.dumps(content) + "\n"  # a line of its own, whatever was printed before
    try:
        os.write(1, line.encode())
    except OSError:
        pass


# --- what the device is ----------------------------------------------------------------------------------------------


def probe(folder: str, request: dict[str, Any]) -> None:
    """Say what the device is."""
    say({"environment": environment(Runtime(request)), "state": state(), "free_bytes": free_bytes(folder)})


def listing(folder: str, request: dict[str, Any]) -> None:
    """Say which objects the device has, whole or cut."""
    objects = os.path.join(folder, "objects")
    names = os.listdir(objects) if os.path.isdir(objects) else []
    say({"objects": {name: os.path.getsize(os.path.join(objects, name)) for name in names}})


def environment(runtime: Runtime) -> dict[str, Any]:
    """What stays the same from run to run."""
    import numpy as np

    return {
        "device": "%s, %s cores" % (processor(), os.cpu_count()),
        "machine": platform.machine(),
        "system": platform.platform(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "runtime": runtime.name,
        "runtime_version": runtime.version,
        "provider": runtime.provider,
        "threads": runtime.threads,
        "affinity": runtime.affinity,
        "memory_bytes": memory("MemTotal"),
    }


def state() -> dict[str, Any]:
    """What may change from run to run. What the device does not tell is missing."""
    zone = read("/sys/class/thermal/thermal_zone0/temp")
    found = {
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency_khz": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"),
        "temperature_c": float(zone) / 1000 if zone and zone.lstrip("-").isdigit() else None,
        "throttled": throttled(),
        "memory_free_bytes": memory("MemAvailable"),
        "load_average": list(os.getloadavg()),
    }
    return {key: value for key, value in found.items() if value is not None}


def throttled() -> str | None:
    """Flags of the firmware of a Raspberry Pi, '0x0' where its processor runs as it should."""
    if shutil.which("vcgencmd") is None:
        return None
    try:
        done = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = done.stdout.decode(errors="replace").strip().rpartition("=")[2]
    return text if done.returncode == 0 and text.startswith("0x") else None


def read(path: str) -> str | None:
    """The first line of a file; None where there is none."""
    try:
        with open(path) as file:
            return file.readline().strip() or None
    except (OSError, ValueError):
        return None


def memory(kind: str) -> int | None:
    """A line of /proc/meminfo, in bytes."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith(kind + ":"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def processor() -> str:
    """Model of the processor, as Linux names it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def free_bytes(folder: str) -> int:
    """Space that a file in this folder may take."""
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize


# --- files -----------------------------------------------------------------------------------------------------------


def receive(folder: str, request: dict[str, Any]) -> None:
    """Append stdin to the object `sha256`, whose first `offset` bytes are there. What is whole is checked and kept.

    request: sha256 and bytes of the object; payload and payload_bytes, the same of what is sent, which may be
    compressed (zlib); offset.
    """
    objects = os.path.join(folder, "objects")
    os.makedirs(objects, exist_ok=True)
    target = os.path.join(objects, request["sha256"])
    part = "%s.%s.part" % (target, request["payload"][:16])
    there = os.path.getsize(part) if os.path.exists(part) else 0
    if there != request["offset"]:
        raise Refused("offset", "%d bytes are there, not %d" % (there, request["offset"]))
    needed = request["payload_bytes"] - there + SPARE_BYTES
    if request["compressed"]:
        needed += request["bytes"]
    if needed > free_bytes(folder):
        raise Refused(
            "space", "%.1f MB are needed, %.1f MB are free" % (needed / 1e6, free_bytes(folder) / 1e6)
        )
    try:
        with open(part, "ab", buffering=0) as file:
            while True:
                chunk = os.read(0, CHUNK)
                if not chunk:
                    break
                file.write(chunk)
        if os.path.getsize(part) < request["payload_bytes"]:
            say({"cut": os.path.getsize(part)})
            return
        draft = unpacked(part, request)
        os.replace(draft, target)
        if draft != part:
            os.unlink(part)
        sync(objects)
    except OSError as error:
        raise Refused("space", "%s" % error) from error
    say({"received": request["sha256"]})


def unpacked(part: str, request: dict[str, Any]) -> str:
    """The file that holds the object in a received part, checked against its hash."""
    digest = hashlib.sha256()
    draft = part + ".raw" if request["compressed"] else part
    inflate = zlib.decompressobj()
    count = 0
    try:
        with open(part, "rb") as source, open(draft, "wb" if request["compressed"] else "rb") as file:
            while True:
                chunk = source.read(CHUNK)
                if not chunk:
                    break
                if request["compressed"]:
                    chunk = inflate.decompress(chunk)
                    file.write(chunk)
                digest.update(chunk)
                count += len(chunk)
                if count > request["bytes"]:
                    break
            if request["compressed"]:
                file.flush()
            os.fsync(file.fileno())
    except (OSError, zlib.error):
        if request["compressed"] and os.path.exists(draft):
            os.unlink(draft)
        raise
    if digest.hexdigest() != request["sha256"]:
        for path in {part, draft}:
            os.unlink(path)
        raise Refused("damaged", "it arrived damaged")
    return draft


def checked_object(folder: str, name: str) -> str:
    """The path of an object, whose content is what its name says."""
    path = os.path.join(folder, "objects", name)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while True:
                chunk = file.read(CHUNK)
                if not chunk:
                    break
                digest.update(chunk)
    except OSError as error:
        raise Refused("missing", str(error)) from error
    if digest.hexdigest() != name:
        os.unlink(path)
        raise Refused("missing", "an object was damaged, and is removed")
    return path


def write(path: str, content: bytes) -> dict[str, Any]:
    """Write a file that is there whole or not at all. Returns its size and hash."""
    draft = path + ".draft"
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise Refused("space", "%s" % error) from error
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def sync(folder: str) -> None:
    """Wait until the list of names of a folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def show(folder: str, request: dict[str, Any]) -> None:
    """Write a file of a result to stdout."""
    with open(os.path.join(folder, "results", request["key"], request["name"]), "rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer, CHUNK)
    sys.stdout.buffer.flush()


def drop(folder: str, request: dict[str, Any]) -> None:
    """Remove objects and results, with parts that were cut."""
    objects = os.path.join(folder, "objects")
    for name in os.listdir(objects) if os.path.isdir(objects) else []:
        if name.split(".")[0] in request["objects"]:
            os.unlink(os.path.join(objects, name))
    for key in request["results"]:
        shutil.rmtree(os.path.join(folder, "results", key), ignore_errors=True)
    say({"dropped": True})


# --- locks -----------------------------------------------------------------------------------------------------------


def locked(path: str, waiting: Callable[[], bool]) -> Any:
    """Open and lock a file. While another process has the lock, waiting() is called; None where it says False."""
    file = open(path, "a+")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if not waiting():
                return None
            time.sleep(POLL_SECONDS)


def hold(folder: str, request: dict[str, Any]) -> None:
    """Keep the lock of the device until stdin ends. The file says who has it."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "deployment.lock")
    said: list[str] = []

    def waiting() -> bool:
        holder = read(path) or "another deployment"
        if said[-1:] != [holder]:
            said.append(holder)
            say({"waiting_for": holder})
        return connected()

    file = locked(path, waiting)
    if file is None:
        return
    file.truncate(0)
    file.write(request["who"])
    file.flush()
    say({"held": True})
    while os.read(0, CHUNK):
        pass


def connected() -> bool:
    """Whether whoever asked is still there: stdin has not ended."""
    import select

    ready, _, _ = select.select([0], [], [], 0)
    return not ready or bool(os.read(0, CHUNK))


# --- one network -----------------------------------------------------------------------------------------------------


class Runtime:
    """What executes a network: ONNX Runtime. Another one has the same attributes, open() and run().

    Attributes:
        name: of the runtime.
        version: of the runtime.
    """

    name = "onnxruntime"

    def __init__(self, request: dict[str, Any]) -> None:
        self.threads, self.provider = request["threads"], request["provider"]
        self.affinity = request.get("affinity")
        # From 1.29 on, onnxruntime reports its use to Microsoft in its own threads unless this is set before it starts.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        if self.affinity:
            pin(self.affinity)
        try:
            import numpy  # noqa: F401
            import onnxruntime
        except ImportError as error:
            here = "%s, Python %s" % (platform.machine(), platform.python_version())
            raise Refused("import", "%s (%s)" % (error, here)) from error
        self.version = onnxruntime.__version__
        self._module = onnxruntime
        self._provider = "CUDAExecutionProvider" if self.provider == "cuda" else "CPUExecutionProvider"
        if self._provider not in onnxruntime.get_available_providers():
            there = ", ".join(onnxruntime.get_available_providers())
            raise Refused("provider", "this onnxruntime has " + there)

    def open(self, path: str) -> None:
        """Load a network."""
        options = self._module.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._module.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        try:
            self._session = self._module.InferenceSession(path, options, providers=[self._provider])
        except Exception as error:  # the error classes of onnxruntime differ between versions
            raise Refused("model", str(error).splitlines()[0]) from error
        if self._session.get_providers()[0] != self._provider:
            raise Refused("provider", self._provider + " could not be started")
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            raise Refused("model", "its input is not one float32 image")
        self.input, self.shape = inputs[0].name, list(inputs[0].shape)
        self.outputs = [each.name for each in self._session.get_outputs()]
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self.run = self._session.run

    # run(None, {input: image}) -> outputs; set by open()


def pin(cores: list[int]) -> None:
    """Run only on these cores. Threads that start later inherit it."""
    if not hasattr(os, "sched_setaffinity"):
        raise Refused("affinity", "this system cannot pin a process to cores")
    try:
        os.sched_setaffinity(0, cores)
    except (OSError, ValueError, OverflowError) as error:
        raise Refused("affinity", "cores %s: %s" % (cores, error)) from error
    missing = sorted(set(cores) - os.sched_getaffinity(0))
    if missing:
        raise Refused("affinity", "there is no core " + ", ".join(map(str, missing)))


class Events:
    """The events of one run: on stdout, and in a file for those who follow it."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", buffering=1)

    def __call__(self, **content: Any) -> None:
        say(content)
        try:
            self._file.write(json.dumps(content) + "\n")
        except OSError:
            pass  # a full disk; the result says so at the end


def run(folder: str, request: dict[str, Any]) -> None:
    """Run one network over all images: a new run, one that goes on already, or the result of one that is over.

    request: key (name of the result), attempt (results of another are measured again), network, images and labels
    (objects; labels may be null), prepared (whether images are fed as they are), runtime, threads, provider, affinity,
    repeats, seconds, idle_seconds.
    """
    os.makedirs(os.path.join(folder, "results"), exist_ok=True)
    path = os.path.join(folder, "run.lock")
    events = os.path.join(folder, "events.jsonl")
    following = Following(events)

    def waiting() -> bool:
        current = going_on(folder)
        if current.get("key") == request["key"] and current.get("attempt") == request["attempt"]:
            following.catch_up()
        else:
            following.wait(current)
        return True

    lock = locked(path, waiting)
    if following.begun:
        following.catch_up()
    if answered(folder, request):
        return
    with open(os.path.join(folder, "run.json"), "w") as file:
        json.dump({"key": request["key"], "attempt": request["attempt"], "pid": os.getpid()}, file)
    detach()
    try:
        measure(folder, request, Events(events))
    finally:
        lock.close()
    answered(folder, request)


def going_on(folder: str) -> dict[str, Any]:
    """What the run that has the lock is of; {} where that is not known."""
    try:
        with open(os.path.join(folder, "run.json")) as file:
            return dict(json.load(file))
    except (OSError, ValueError):
        return {}


class Following:
    """Repeats the events of a run that another process makes, or says once that there is one."""

    def __init__(self, path: str) -> None:
        self._path, self._at, self.begun, self._said = path, 0, False, False

    def catch_up(self) -> None:
        """Say the events that came since the last call."""
        self.begun = True
        try:
            with open(self._path) as file:
                file.seek(self._at)
                lines = file.read()
        except OSError:
            return
        whole = lines.rpartition("\n")[0]
        self._at += len(whole.encode()) + 1 if whole else 0
        for line in whole.splitlines():
            try:
                say({**json.loads(line), "replayed": True})
            except ValueError:
                continue

    def wait(self, current: dict[str, Any]) -> None:
        """Say once that another run has to end first."""
        if not self._said:
            self._said = True
            say({"waiting_for": "another run on the device (process %s)" % current.get("pid", "?")})


def stop(folder: str, request: dict[str, Any]) -> None:
    """End a run, if it goes on."""
    with open(os.path.join(folder, "run.lock"), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            current = going_on(folder)
            if current.get("key") == request["key"] and current.get("attempt") == request["attempt"]:
                os.kill(int(current["pid"]), signal.SIGTERM)
    say({"stopped": True})


def answered(folder: str, request: dict[str, Any]) -> bool:
    """Say the result, if there is one of this attempt."""
    try:
        with open(os.path.join(folder, "results", request["key"], "record.json"), "rb") as file:
            content = file.read()
        record = json.loads(content)
    except (OSError, ValueError):
        return False
    if record.get("attempt") != request["attempt"] or record.get("format") != FORMAT:
        return False
    say({"event": "finished", "record": record})
    return True


def detach() -> None:
    """Go on when the connection ends."""
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        os.setsid()
    except OSError:
        pass  # it has a session of its own already
    signal.alarm(TIMEOUT_SECONDS)


def measure(folder: str, request: dict[str, Any], event: Events) -> None:
    """Run a network over all images, window by window, and write its result."""
    before = state()
    runtime = Runtime(request)
    import numpy as np

    network, images = (checked_object(folder, request[name]) for name in ("network", "images"))
    truth = None
    if request["labels"] is not None:
        truth = np.load(checked_object(folder, request["labels"]), allow_pickle=False)
    stored = np.load(images, mmap_mode="r", allow_pickle=False)
    baseline = resident_bytes()
    reset = reset_peak()
    runtime.open(network)
    prepare = preparation(runtime, request["prepared"], stored.shape)
    one = prepare(stored[:1])
    try:
        for _ in range(WARM_UP_RUNS):
            runtime.run(None, {runtime.input: one})
    except Exception as error:
        raise Refused("run", "%s: %s" % (type(error).__name__, str(error).splitlines()[0])) from error
    peak, source = peak_bytes()
    needed = int(np.prod(stored.shape)) * 4
    room = state().get("memory_free_bytes", 2 * needed / MEMORY_SHARE)
    in_memory = needed <= MEMORY_SHARE * room
    event(event="images", count=len(stored), in_memory=in_memory)
    size = len(stored) if in_memory else max(1, int(MEMORY_SHARE / 2 * room / (needed / len(stored))))

    def feeds(block: Any) -> list[dict[str, Any]]:
        images = prepare(block)
        return [{runtime.input: images[i : i + 1]} for i in range(len(images))]

    held = feeds(stored) if in_memory else []

    def blocks() -> Iterator[list[dict[str, Any]]]:
        if in_memory:
            yield held
            return
        for start in range(0, len(stored), size):
            yield feeds(stored[start : start + size])

    warm_up(runtime, one)
    clock = time.perf_counter
    times = array.array("f")
    repeats: list[dict[str, Any]] = []
    first: list[Any] = []
    idle(event, request["idle_seconds"])
    for number in range(request["repeats"]):
        answers: list[Any] = []
        begun_at, counted, inside, passes = clock(), 0, 0.0, 0
        event(event="begin", kind="load", repeat=number + 1)
        word = begun_at + PROGRESS_SECONDS
        while passes == 0 or clock() - begun_at < request["seconds"]:
            for block in blocks():
                for feed in block:
                    start = clock()
                    answer = runtime.run(None, feed)
                    end = clock()
                    inside += end - start
                    times.append((end - start) * 1000)
                    if passes == 0:
                        answers.append(answer)
                    if end > word:
                        word = end + PROGRESS_SECONDS
                        done = len(answers) if passes == 0 else len(stored)
                        event(event="progress", repeat=number + 1, done=done, of=len(stored), passes=passes)
            passes += 1
            counted += len(stored)
        took = clock() - begun_at
        event(event="end", kind="load", repeat=number + 1, images=counted, inference_seconds=inside)
        outputs = [np.concatenate([each[place] for each in answers]) for place in range(len(runtime.outputs))]
        correct = None if truth is None else int((classes(runtime.outputs, outputs) == truth).sum())
        if not first:
            first = outputs
        latest = np.frombuffer(times[-counted:], np.float32)
        repeats.append(
            {
                "images": counted,
                "passes": passes,
                "seconds": took,
                "inference_seconds": inside,
                "correct": correct,
                "median_ms": float(np.median(latest)),
                "same_answers": all(
                    bool(np.array_equal(a, b, equal_nan=True)) for a, b in zip(outputs, first)
                ),
            }
        )
    idle(event, request["idle_seconds"])

    home = os.path.join(folder, "results", request["key"])
    shutil.rmtree(home, ignore_errors=True)
    os.makedirs(home)
    files = {"times.bin": write(os.path.join(home, "times.bin"), np.frombuffer(times, "<f4").tobytes())}
    for name, output in zip(runtime.outputs, first):
        content = np.ascontiguousarray(output, dtype="<f4").tobytes()
        files["output-%s.bin" % name] = write(os.path.join(home, "output-%s.bin" % name), content)
    record = {
        "format": FORMAT,
        "key": request["key"],
        "attempt": request["attempt"],
        "images": len(stored),
        "correct": repeats[0]["correct"],
        "not_finite": int(
            sum((~np.isfinite(each)).any(axis=tuple(range(1, each.ndim))).sum() for each in first)
        ),
        "repeats": repeats,
        "outputs": {name: list(each.shape) for name, each in zip(runtime.outputs, first)},
        "baseline_memory_bytes": baseline,
        "peak_memory_bytes": max(0, peak - baseline),
        "memory_from": source if reset else source + ", imports included",
        "images_in_memory": in_memory,
        "idle_seconds": request["idle_seconds"],
        "environment": environment(runtime),
        "before": before,
        "after": state(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "files": files,
    }
    write(os.path.join(home, "record.json"), json.dumps(record).encode())
    sync(home)


def warm_up(runtime: Runtime, image: Any) -> None:
    """Run one image for a while: processors begin slowly."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < WARM_UP_SECONDS:
        runtime.run(None, {runtime.input: image})


def idle(event: Events, seconds: float) -> None:
    """One idle window, where it has a length."""
    if seconds > 0:
        event(event="begin", kind="idle")
        time.sleep(seconds)
        event(event="end", kind="idle", images=0, inference_seconds=0.0)


def preparation(runtime: Runtime, prepared: bool, shape: Sequence[int]) -> Callable[[Any], Any]:
    """A function that makes the network's input, float32 (n, C, H, W), of stored images.

    Images that are not prepared are rescaled as the network's file says, with the same operations as in training.
    """
    import numpy as np

    wanted = runtime.shape[1:]
    if any(isinstance(there, int) and there != given for there, given in zip(wanted, shape[1:])):
        raise Refused("size", "images are %s, the network takes %s" % (list(shape[1:]), wanted))
    if prepared:
        return lambda stored: np.ascontiguousarray(stored, dtype=np.float32)
    try:
        said = json.loads(runtime.metadata["dxc"])
        normalise = said["normalise"]
        constants = (
            [np.asarray(said[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std")]
            if (normalise == "fixed")
            else []
        )
    except (KeyError, ValueError, TypeError) as error:
        raise Refused("metadata", "the file does not say how it is fed: %s" % error) from error
    if normalise not in ("fixed", "none"):
        raise Refused("metadata", "normalise=%s needs images that are prepared already" % normalise)

    def scaled(stored: Any) -> Any:
        images = stored.astype(np.float32)
        if constants:
            images -= constants[0]
            images /= constants[1]
        return images

    return scaled


def classes(names: Sequence[str], outputs: Sequence[Any]) -> Any:
    """The class of each image (n,) by the outputs of a network: the largest score, or whether presence is above 0."""
    if "presence" in names:
        return (outputs[list(names).index("presence")].reshape(-1) > 0).astype("int64")
    return outputs[list(names).index("scores")].argmax(axis=1)


def resident_bytes() -> int:
    """Resident memory now. Where /proc is missing, the peak so far."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_bytes()[0]


def reset_peak() -> bool:
    """Reset the peak, because imports may have needed more than they kept. Returns False if the system cannot."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def peak_bytes() -> tuple[int, str]:
    """Peak resident memory since reset_peak or since the start of the process; and where it was read."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024, "VmHWM"
    except (OSError, ValueError):
        pass
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss"


VERBS = {
    "probe": probe,
    "listing": listing,
    "stop": stop,
    "receive": receive,
    "hold": hold,
    "run": run,
    "show": show,
    "drop": drop,
}


def main(verb: str, folder: str, request: str) -> int:
    """Do one thing. A refusal is an answer too."""
    if sys.version_info < (3, 9):
        say({"error": "python", "message": "Python %s" % platform.python_version()})
        return 1
    try:
        VERBS[verb](folder, json.loads(request))
    except Refused as refused:
        say({"error": refused.kind, "message": str(refused)})
        return 1
    except MemoryError:
        say({"error": "memory", "message": "there is too little memory"})
        return 1
    except OSError as error:
        say({"error": "disk", "message": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
