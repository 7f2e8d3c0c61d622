"""What an exported .onnx says about itself: how it is fed, what its outputs mean, and where it comes from.

All of it is one JSON object under the key `dxc` of the file's metadata. A few plain keys beside it are for people who
open the file in a viewer such as Netron. dxc does not read them back.
"""

from __future__ import annotations

import importlib.metadata
import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dxc.data.bands import (
    INDICES,
    LEAST_RANGE,
    LOCAL_MEAN_REACH,
    LOCAL_MEAN_SIGMA,
    PHOTO_BANDS,
    check_channels,
    needed_photo_bands,
)
from dxc.data.layout import CLASS_NAMES
from dxc.errors import ConfigError, ExportError
from dxc.models.registry import DEFAULT_OUTPUTS
from dxc.untrusted import HASH, load_json

if TYPE_CHECKING:
    import onnx

FORMAT = 1
"""Raise it when the meaning of a field or the computation of a channel changes. Files of another format are refused."""
KEY = "dxc"
METADATA_BYTES = 1536
"""Bytes that the metadata adds to a file; spaces fill them up. So the size of a network's file is known before training
and does not depend on the names of its channels or on its origin. Only many classes or a long name of a fold take
more."""
FOLDS = "folds"
"""Folder of a run's artifacts with the network of each fold, FOLD.onnx, where these were asked for."""
MAX_CHARACTERS, MAX_DEPTH = 100_000, 6
ANY: Final = "any"

OUTPUTS = {
    "scores": "(batch, classes): logits; softmax over the classes gives probabilities",
    "presence": "(batch): logit of the last class; its sigmoid is a probability",
    "box": "(batch, 4): cx, cy, w, h, centre and size, 0..1 of the width (cx, w) and the height (cy, h) of the image; "
    "x to the right, y down",
}
"""What each output of a network means, by its name."""
REPAIRED = {
    "mean": "0/0 becomes the mean of its valid 4-neighbours, 0 without any",
    "reference": "0/0 becomes the sum of its valid 4-neighbours (clamped at the border) / 4, in row-major order, in "
    "place",
}
NORMALISED: dict[str, dict[str, Any]] = {
    "per_chip": {"formula": "(x - min) / (max - min)", "over": "image", "constant": 0},
    "per_column": {
        "formula": "x * s + (0 - min * s), s = 1 / (max - min)",
        "over": "image column",
        "least_range": LEAST_RANGE,
        "smaller_range": 1,
    },
    "fixed": {"formula": "(x - mean) / std"},
    "none": {"formula": "x"},
}
"""How each mode rescales elevation and photo bands, in float32 and without clipping. min and max are taken of one band
over `over`. A range (max - min) below least_range counts as smaller_range. A constant band becomes `constant`."""

_Name = Annotated[str, Field(min_length=1, max_length=64)]
_Pixels = Annotated[int, Field(ge=1, le=1_000_000)]


class Metadata(BaseModel):
    """How a network is fed, what its outputs mean, and where it comes from.

    Attributes:
        channels: names of the input's channels, in order (dxc.data.bands).
        normalise: per_chip, per_column, fixed or none; see NORMALISED.
        mean: of each channel, for normalise=fixed; None else.
        std: likewise.
        local_mean_sigma: of normalise=fixed, where dem is elevation less its Gaussian local mean: its standard
            deviation in pixels (dxc.data.bands.elevation_above_local_mean). None: dem is elevation.
        repair: of 0/0 pixels in ndwi and ndvi, mean or reference; see REPAIRED.
        photo_bands: bands of the photos that it was trained on, in file order.
        size: height and width of the input in pixels, or "any". The exporter fills it in.
        pixel_m: edge of a pixel on the ground in metres. None: unknown.
        jitter_m: largest distance of a target from the centre of its training image, on either axis, in metres. None:
            unknown.
        classes: names of the classes, in the order of the scores. Of two the last is the target.
        outputs: names of the network's outputs, in order; see OUTPUTS. The exporter fills them in.
        quantised: how it computes in 8 bits, dynamic or static (dxc.compress.quantise). None: in float32.
        calibration_images: number of training images that the ranges of its activations were found on. None: it has no
            such ranges.
        fold: name of the fold that was held out of its training: with data.split=region a region. None: unknown.
        trial: identity of the configuration (tag dxc.trial). None: it belongs to no tracked run.
        data: hash of the chips that it was trained on (tag dxc.data). None: not trained.
        version: of the dxc that exported it. None: unknown.
        commit: of the dxc that exported it. None: unknown.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    channels: tuple[_Name, ...]
    normalise: Annotated[str, Field(pattern=f"^({'|'.join(NORMALISED)})$")] = "per_chip"
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    local_mean_sigma: Literal[LOCAL_MEAN_SIGMA] | None = None  # type: ignore[valid-type]  # a constant
    repair: Annotated[str, Field(pattern=f"^({'|'.join(REPAIRED)})$")] = "mean"
    photo_bands: tuple[_Name, ...] = PHOTO_BANDS
    size: tuple[_Pixels, _Pixels] | Literal["any"] = ANY
    pixel_m: Annotated[float, Field(gt=0)] | None = None
    jitter_m: Annotated[float, Field(ge=0)] | None = None
    classes: Annotated[tuple[_Name, ...], Field(min_length=2, max_length=1000)] = CLASS_NAMES
    outputs: tuple[_Name, ...] = DEFAULT_OUTPUTS
    quantised: Literal["dynamic", "static"] | None = None
    calibration_images: Annotated[int, Field(ge=1)] | None = None
    fold: Annotated[str, Field(min_length=1, max_length=300)] | None = None
    trial: Annotated[str, Field(pattern=f"^{HASH.pattern}$")] | None = None
    data: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,64}$")] | None = None
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}(\+changes)?$")] | None = None

    @property
    def bands(self) -> tuple[str, ...]:
        """The raw bands from which the channels are made: first dem, if it is used, then those of the photo."""
        dem = ["dem"] if "dem" in self.channels else []
        return (*dem, *needed_photo_bands(self.channels))

    def to_json(self) -> str:
        """One JSON object: the known fields, and their meaning in words and numbers."""
        content = {"format": FORMAT, **self.model_dump(mode="json", exclude_none=True), **self._explained()}
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, source: object) -> Metadata:
        """Read the metadata of a file. It is treated as data.

        Args:
            text: from the key `dxc` of the file's metadata.
            source: name of the file, for messages.

        Raises:
            ExportError: the text is no such JSON, has another format, holds an impossible value, or names numbers that
                differ from those of this version of dxc.
        """
        try:
            content = load_json(text, limit=MAX_CHARACTERS, depth=MAX_DEPTH)
            if not isinstance(content, dict):
                raise ValueError("it is no JSON object")
            if content.get("format") != FORMAT:
                raise ValueError(
                    f"it is of format {content.get('format')!r:.40}, and this version of dxc reads {FORMAT}; use the "
                    "version that wrote it, or export the network again"
                )
            fields = {key: value for key, value in content.items() if key in cls.model_fields}
            metadata = cls.model_validate_json(json.dumps(fields))
            check_channels(metadata.channels, metadata.photo_bands)
            metadata._check_constants()
            for key, value in metadata._explained().items():
                if content.get(key) != value:
                    raise ValueError(f"its {key} is not what this version of dxc computes with")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"][:2]))
            raise ExportError(f"{source}: its metadata cannot be used: {place}: {first['msg']}") from error
        except (ValueError, ConfigError, RecursionError) as error:
            raise ExportError(f"{source}: its metadata cannot be used: {error}") from error
        return metadata

    def write_to(self, model: onnx.ModelProto) -> None:
        """Write it into a model. The model grows by METADATA_BYTES, or by more if they do not suffice."""
        import onnx

        text = self.to_json()
        size = self.size if isinstance(self.size, str) else " x ".join(map(str, self.size))
        plain = {
            "channels": " ".join(self.channels),
            "size (height x width)": size,
            "normalise": self.normalise,
            "classes": ", ".join(self.classes)[:100],
        }
        alone = onnx.ModelProto()
        onnx.helper.set_model_props(alone, {KEY: text, **plain})
        onnx.helper.set_model_props(
            model, {KEY: text.ljust(len(text) + METADATA_BYTES - alone.ByteSize()), **plain}
        )

    def check_fits(self, model: onnx.ModelProto, source: object) -> None:
        """Raise ExportError if the input or the outputs of a network are not those of this metadata.

        Args:
            model: the network.
            source: name of the file, for messages.
        """
        if self.outputs not in (("scores",), ("presence", "box")):
            raise ExportError(
                f"{source}: the network's outputs are {', '.join(self.outputs) or 'none'}; metadata can describe "
                "scores, or presence with box"
            )
        sizes: list[object] = ["height", "width"] if isinstance(self.size, str) else list(self.size)
        batch = {"scores": [len(self.classes)], "presence": [], "box": [4]}
        said = {
            "image": ["batch", len(self.channels), *sizes],
            **{name: ["batch", *batch[name]] for name in self.outputs},
        }
        found = {each.name: _shape(each) for each in (*model.graph.input, *model.graph.output)}
        if found != said:
            raise ExportError(f"{source}: its metadata says {said}, and the network in it has {found}")
        if "presence" in self.outputs and len(self.classes) != 2:
            raise ExportError(f"{source}: the output presence needs two classes, not {len(self.classes)}")

    def _check_constants(self) -> None:
        """Raise ValueError unless there are a mean and a std for each channel where they are needed, and none else."""
        wanted = len(self.channels) if self.normalise == "fixed" else None
        for name, values in (("mean", self.mean), ("std", self.std)):
            if (None if values is None else len(values)) != wanted:
                raise ValueError(
                    f"normalise={self.normalise} needs {wanted or 'no'} numbers of {name}, and it has "
                    f"{'none' if values is None else len(values)}"
                )
        relief = self.normalise == "fixed" and "dem" in self.channels
        if (self.local_mean_sigma is not None) != relief:
            raise ValueError("local_mean_sigma belongs to normalise=fixed with the channel dem")

    def _explained(self) -> dict[str, Any]:
        """The meaning of the fields, for those who have the file but not dxc."""
        indices = {name: pair for name, pair in INDICES.items() if name in self.channels}
        explained: dict[str, Any] = {
            "input": "image: float32 (batch, channels, height, width)",
            "normalisation": {
                "of": [channel for channel in self.channels if channel not in INDICES],
                **NORMALISED[self.normalise],
            },
            "meaning": {name: OUTPUTS[name] for name in self.outputs if name in OUTPUTS},
        }
        if self.local_mean_sigma is not None:
            explained["normalisation"]["dem"] = (
                f"x less its local linear fit per axis, Gaussian of {LOCAL_MEAN_SIGMA} pixels cut at {LOCAL_MEAN_REACH}"
            )
        if indices:
            explained["indices"] = {
                **{name: f"({a} - {b}) / ({a} + {b}) of raw bands" for name, (a, b) in indices.items()},
                "repair": REPAIRED[self.repair],
            }
        return explained


def dxc_version() -> str | None:
    """Version of the installed package; None in a checkout that is not installed."""
    try:
        return importlib.metadata.version("dxc")
    except importlib.metadata.PackageNotFoundError:
        return None


def _shape(tensor: onnx.ValueInfoProto) -> list[object]:
    """Sizes of an input or output. An open size is given by its name."""
    return [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]


def read_metadata(model: onnx.ModelProto, source: object) -> Metadata:
    """Read what a loaded ONNX file says about itself.

    Args:
        model: the file.
        source: name of the file, for messages.

    Raises:
        ExportError: the file has no metadata of dxc, or metadata that cannot be used.
    """
    texts = [each.value for each in model.metadata_props if each.key == KEY]
    if len(texts) != 1:
        raise ExportError(
            f"{source} does not say how it is fed: it has {len(texts) or 'no'} metadata under the key '{KEY}'. "
            "Only files that dxc exported have; train the network with train.py, which exports it"
        )
    metadata = Metadata.from_json(texts[0], source)
    metadata.check_fits(model, source)
    return metadata
