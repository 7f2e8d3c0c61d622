"""An exported network that takes raw bands. It preprocesses them like training and gives the same answers.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from dxc.deploy.export import export_onnx
    >>> from dxc.deploy.metadata import Metadata
    >>> from dxc.models.resnet import ResNet

This network is not trained and takes photos of 32 x 32 pixels. train.py leaves a trained one in model.onnx:

    >>> folder = tempfile.TemporaryDirectory()
    >>> file = Path(folder.name) / "model.onnx"
    >>> metadata = Metadata(channels=("red", "green", "blue", "ndvi"))
    >>> _ = export_onnx(ResNet(4, width=4), file, in_channels=4, size=32, metadata=metadata)

The file is all that is needed:

    >>> predictor = Predictor(file)
    >>> predictor.metadata.bands, predictor.metadata.size
    (('red', 'green', 'blue', 'nir'), (32, 32))
    >>> photo = np.random.default_rng(0).integers(0, 256, (4, 32, 32), dtype=np.uint8)
    >>> prediction = predictor.predict(photo, ["red", "green", "blue", "nir"])
    >>> prediction.classes, prediction.probabilities.shape
    (('no crossing', 'crossing'), (1, 2))
    >>> by_name = {"nir": photo[3], "red": photo[0], "green": photo[1], "blue": photo[2]}
    >>> bool((predictor.predict(by_name).presence == prediction.presence).all())
    True
    >>> folder.cleanup()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dxc.data.bands import stack_channels
from dxc.deploy.metadata import ANY, read_metadata
from dxc.errors import ConfigError, DataError, ExportError, first_line, require_one_of, require_whole
from dxc.geo.rasterfiles import MAX_SIZE
from dxc.models.registry import MIN_SIZE

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's name of each hardware.provider."""
MAX_BYTES = 2**31 - 1
"""Largest file: no more fits into a protobuf message."""
BATCH_SIZE = 32

Floats = NDArray[np.float32]


class Prediction(NamedTuple):
    """What a network answers for n images.

    Attributes:
        probabilities: float32 (n, classes), each row sums to 1.
        boxes: float32 (n, 4): cx, cy, w, h, centre and size relative to the image, x to the right, y down. None where
            the network gives only classes.
        classes: names of the columns of `probabilities`.
    """

    probabilities: Floats
    boxes: Floats | None
    classes: tuple[str, ...]

    @property
    def presence(self) -> Floats:
        """Probability of the last class, which is the target of two: float32 (n,)."""
        return self.probabilities[:, -1]

    @property
    def names(self) -> list[str]:
        """Name of the likeliest class of each image."""
        return [self.classes[number] for number in self.probabilities.argmax(axis=1)]


class Predictor:
    """An exported network with its preprocessing. The same code prepares chips for training.

    Attributes:
        metadata: what the file says about itself.
    """

    def __init__(self, path: Path | str, provider: str = "cpu", threads: int = 1) -> None:
        """Open a file that dxc exported.

        Args:
            path: of the .onnx.
            provider: cpu or cuda.
            threads: number of CPU threads for one operator.

        Raises:
            ExportError: there is no such file, it is no ONNX file, or it does not say how it is fed.
            ConfigError: an argument cannot work, or this onnxruntime lacks the provider.
        """
        require_one_of("provider", provider, PROVIDERS)
        require_whole("threads", threads, at_least=1)
        self._path = Path(path)
        content = _content(self._path)
        self.metadata = read_metadata(_parsed(content, self._path), self._path)
        self._session = _session(content, self._path, PROVIDERS[provider], threads)

    def predict(
        self,
        bands: Mapping[str, ArrayLike] | ArrayLike,
        names: Sequence[str] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> Prediction:
        """Probabilities of n images, and boxes if the network gives boxes.

        Args:
            bands: raw bands by name (metadata.bands: dem in metres, photo bands as digital numbers), each (H, W) or
                (n, H, W); or one array of them, (bands, H, W) or (n, bands, H, W). Bands that the network does not
                use are ignored.
            names: of the bands of an array, in its order.
            batch_size: number of images in one execution.

        Raises:
            DataError: a band is missing; its size, shape or type does not fit the network; or it holds NaN, infinite
                or masked values.
            ConfigError: batch_size cannot work.
        """
        require_whole("batch_size", batch_size, at_least=1)
        raw = self._checked(bands, names)
        parts = [self._answered(self._channels(part)) for part in _parts(raw, batch_size)]
        if not parts:
            count = len(self.metadata.classes)
            boxes = np.zeros((0, 4), np.float32) if "box" in self.metadata.outputs else None
            return Prediction(np.zeros((0, count), np.float32), boxes, self.metadata.classes)
        boxes = None if parts[0].boxes is None else np.concatenate([part.boxes for part in parts])
        return Prediction(
            np.concatenate([part.probabilities for part in parts]), boxes, self.metadata.classes
        )

    def preprocess(
        self, bands: Mapping[str, ArrayLike] | ArrayLike, names: Sequence[str] | None = None
    ) -> Floats:
        """The network's input for n images: float32 (n, channels, H, W). Arguments and errors are those of predict."""
        return self._channels(self._checked(bands, names))

    def _channels(self, raw: Mapping[str, NDArray]) -> Floats:
        """Channels (n, C, H, W) of checked bands (n, H, W)."""
        said = self.metadata
        count, height, width = next(iter(raw.values())).shape
        channels = np.empty((count, len(said.channels), height, width), np.float32)
        for number in range(count):
            of_one = {name: band[number] for name, band in raw.items()}
            channels[number] = stack_channels(
                of_one.pop("dem", None),
                of_one,
                said.channels,
                normalise=said.normalise,
                repair=said.repair,
                mean=said.mean or (),
                std=said.std or (),
            )
        return channels

    def _answered(self, channels: Floats) -> Prediction:
        outputs = self.metadata.outputs
        answers = dict(zip(outputs, self._session.run(list(outputs), {"image": channels}), strict=True))
        if "scores" in answers:
            return Prediction(_softmax(answers["scores"]), None, self.metadata.classes)
        there = answers["presence"]
        both = np.stack([_sigmoid(-there), _sigmoid(there)], axis=1)
        return Prediction(both, answers["box"], self.metadata.classes)

    def _checked(
        self, bands: Mapping[str, ArrayLike] | ArrayLike, names: Sequence[str] | None
    ) -> dict[str, NDArray]:
        """The bands that the network needs, each (n, H, W). Raises DataError as predict does."""
        given = _by_name(bands, names)
        needed = self.metadata.bands
        if missing := [name for name in needed if name not in given]:
            raise DataError(
                f"{self._path} is made for the bands {', '.join(needed)}; missing are {', '.join(missing)}"
            )
        raw = {name: _numbers(name, given[name]) for name in needed}
        shapes = {name: band.shape for name, band in raw.items()}
        if len(set(shapes.values())) > 1:
            listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise DataError(f"bands of one image need one shape, (H, W) or (n, H, W), not {listing}")
        self._check_size(*next(iter(shapes.values()))[1:])
        return raw

    def _check_size(self, height: int, width: int) -> None:
        size = self.metadata.size
        if size == ANY:
            if not MIN_SIZE <= min(height, width) <= max(height, width) <= MAX_SIZE:
                raise DataError(
                    f"images of {height} x {width} pixels (height x width): {self._path} takes {MIN_SIZE} x {MIN_SIZE} "
                    f"to {MAX_SIZE} x {MAX_SIZE}"
                )
        elif size != (height, width):
            raise DataError(
                f"images of {height} x {width} pixels (height x width): {self._path} takes {size[0]} x {size[1]} alone"
            )


def _by_name(bands: Mapping[str, ArrayLike] | ArrayLike, names: Sequence[str] | None) -> Mapping[str, Any]:
    """Bands by name, also from an array."""
    if isinstance(bands, Mapping):
        if names is not None:
            raise DataError("names belong to an array of bands; bands given by name already have theirs")
        return bands
    array = _array("bands", bands)
    if names is None or isinstance(names, str) or len(set(names)) < len(names):
        raise DataError(
            f"an array of bands needs the name of each, such as names=['dem', 'red'], not {names!r:.200}"
        )
    if array.ndim not in (3, 4) or array.shape[-3] != len(names):
        raise DataError(
            f"{len(names)} names ({', '.join(names)}) need an array of (bands, H, W) or (n, bands, H, W), "
            f"not {array.shape}"
        )
    return {name: array[..., number, :, :] for number, name in enumerate(names)}


def _numbers(name: str, band: ArrayLike) -> NDArray:
    """A band as (n, H, W). Raises DataError where a number is missing."""
    array = _array(f"band {name}", band)
    if masked := int(np.ma.getmaskarray(array).sum()):
        raise DataError(f"band {name}: {masked} of {array.size} pixels are masked; fill them")
    array = np.asarray(array)
    if array.dtype.kind not in "iuf":
        raise DataError(f"band {name} is of type {array.dtype}, but raw bands are integers or floats")
    if array.ndim not in (2, 3) or 0 in array.shape[-2:]:
        raise DataError(f"band {name} has the shape {array.shape}, not (H, W) or (n, H, W)")
    if void := array.size - np.count_nonzero(np.isfinite(array)):
        raise DataError(f"band {name}: {void} of {array.size} values are NaN or infinite; fill them")
    return array[None] if array.ndim == 2 else array


def _array(what: str, values: ArrayLike) -> NDArray:
    """Values as an array. A masked array keeps its mask."""
    try:
        return np.asanyarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{what}: not an array: {error}") from error


def _parts(raw: Mapping[str, NDArray], batch_size: int) -> Iterator[dict[str, NDArray]]:
    count = len(next(iter(raw.values())))
    for start in range(0, count, batch_size):
        yield {name: band[start : start + batch_size] for name, band in raw.items()}


def _softmax(scores: Floats) -> Floats:
    """Softmax of each row of logits (n, classes)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _sigmoid(logits: Floats) -> Floats:
    power = np.exp(-np.abs(logits))  # exp of a number <= 0 cannot overflow
    return np.where(logits < 0, power, np.float32(1)) / (1 + power)


def _content(path: Path) -> bytes:
    """The bytes of a file. It is read only once, so that what runs is what was checked."""
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    try:
        if not 0 < path.stat().st_size <= MAX_BYTES:
            raise ExportError(f"{path} is no ONNX file: it is empty, or larger than 2.1 GB")
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from error


def _parsed(content: bytes, path: Path) -> Any:
    """The model in a file's bytes.

    Raises ExportError if there is none, or if it has weights in other files. Files of dxc have none there, and the
    names of other files would be paths that a stranger chose.
    """
    import onnx

    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # onnx raises the errors of its protobuf
        raise ExportError(f"{path} cannot be read as an ONNX file: {error}") from error
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ExportError(
                f"{path} names other files with weights, but dxc exports one file; export the network again"
            )
    return model


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor with values in a protobuf message, at any depth."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is None:
            continue  # numbers and texts
        for each in [value] if hasattr(value, "ListFields") else value:
            if isinstance(each, onnx.TensorProto):
                yield each
            else:
                yield from _tensors(each)


def _session(content: bytes, path: Path, provider: str, threads: int) -> Any:
    import onnxruntime

    if provider not in (there := onnxruntime.get_available_providers()):
        raise ConfigError(f"provider: this onnxruntime has {', '.join(there)}, not {provider}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # ONNX Runtime has an error class for each kind of fault
        raise ExportError(f"{path}: ONNX Runtime cannot run it: {first_line(error)}") from error
    if session.get_providers()[0] != provider:  # ONNX Runtime falls back to the CPU
        raise ConfigError(f"provider: {provider} could not be started; provider=cpu works everywhere")
    return session
