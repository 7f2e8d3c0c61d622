"""Writes malformed TIFF files byte by byte. GDAL itself would refuse to write most of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

SHORT, LONG, DOUBLE, ASCII = 3, 4, 12, 2
FORMATS = {SHORT: "H", LONG: "I", DOUBLE: "d", ASCII: "s"}
DEFLATE, LZW = 8, 5
# 1 m pixels from (500000, 4500000) in EPSG:26914
GEOREFERENCE = {
    33550: (DOUBLE, [1.0, 1.0, 0.0]),
    33922: (DOUBLE, [0.0, 0.0, 0.0, 500_000.0, 4_500_000.0, 0.0]),
    34735: (SHORT, [1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 26914]),
}


def write_tiff(
    path: Path,
    *,
    width: int = 20,
    height: int = 20,
    bits: int = 32,
    kind: int = 3,
    bands: int = 1,
    tile: int | None = None,
    rows_per_strip: int | None = None,
    compression: int = 1,
    block: bytes = b"",
    georeference: dict[int, tuple[int, list[float]]] | None = None,
    nodata: str = "",
) -> Path:
    """A TIFF with one block of these bytes. kind: SampleFormat, 1 unsigned, 2 signed, 3 float, 6 complex float."""
    tags: dict[int, tuple[int, list[float]]] = {
        256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [bits] * bands), 259: (SHORT, [compression]),
        262: (SHORT, [1]), 277: (SHORT, [bands]), 284: (SHORT, [1]), 339: (SHORT, [kind] * bands),
        **(GEOREFERENCE if georeference is None else georeference),
    }  # fmt: skip
    if tile:
        tags |= {322: (LONG, [tile]), 323: (LONG, [tile]), 324: (LONG, [0]), 325: (LONG, [len(block)])}
    else:
        rows = rows_per_strip or height
        tags |= {273: (LONG, [0]), 278: (LONG, [rows]), 279: (LONG, [len(block)])}
    values = {tag: struct.pack(f"<{len(v)}{FORMATS[t]}", *v) for tag, (t, v) in tags.items()}
    entries = {tag: (t, len(v)) for tag, (t, v) in tags.items()}
    if nodata:
        values[42113], entries[42113] = nodata.encode() + b"\0", (ASCII, len(nodata) + 1)
    after = 8 + 2 + 12 * len(entries) + 4
    extra, directory = b"", b""
    offsets = {tag: after + sum(len(v) for v in values.values() if len(v) > 4) for tag in (273, 324)}
    for tag in sorted(entries):
        value = struct.pack("<I", offsets[tag]) if tag in offsets else values[tag]
        if len(value) > 4:
            place, extra = struct.pack("<I", after + len(extra)), extra + value
        else:
            place = value.ljust(4, b"\0")
        directory += struct.pack("<HHI", tag, *entries[tag]) + place
    header = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + directory + bytes(4) + extra + block)
    return path


def _zeros(count: int) -> bytes:
    """So many zero bytes (a multiple of 1000), deflated: one thousandth is compressed, and repeated."""
    packer = zlib.compressobj(wbits=-15)
    piece = packer.compress(bytes(count // 1000)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (count % 65_521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\x9c" + piece * 1000 + packer.flush() + struct.pack(">I", checksum)


ELEVATIONS = np.random.default_rng(0).normal(300, 1, (20, 20)).astype("<f4").tobytes()

HOSTILE = {
    "huge tile": ({"tile": 32_000}, r"blocks of 32000 x 32000 pixels take 4,096 MB each"),
    "deflate bomb": (
        {"tile": 16_000, "compression": DEFLATE, "block": _zeros(16_000 * 16_000 * 4)},
        "blocks of 16000 x 16000 pixels take 1,024 MB each",
    ),
    "lzw bomb": (
        {"tile": 32_000, "compression": LZW, "block": bytes([0x80, 0, 0x20])},
        "blocks of 32000 x 32000 pixels take 4,096 MB each",
    ),
    "a million pixels an edge": (
        {"width": 10**6, "height": 10**6, "rows_per_strip": 1},
        "is 1000000 x 1000000 pixels",
    ),
    "most bands": ({"bands": 65_535, "bits": 8, "kind": 1}, r"has 65535 band\(s\), expected 1"),
    "most bands in huge tiles": (
        {"bands": 65_535, "bits": 8, "kind": 1, "tile": 32_000},
        r"has 65535 band\(s\)|cannot be read as a GeoTIFF",
    ),
    "int8": ({"bits": 8, "kind": 2, "block": bytes(400)}, "is of type int8, expected one of int16"),
    "uint64": ({"bits": 64, "kind": 1, "block": bytes(3200)}, "is of type uint64"),
    "complex of int16": ({"bits": 32, "kind": 5, "block": bytes(1600)}, "is of type complex_int16"),
    "an unknown kind of number": ({"kind": 77, "block": bytes(1600)}, "cannot be read as a GeoTIFF"),
    "three bytes a number": ({"bits": 24, "kind": 1, "block": bytes(1200)}, None),
    "nodata that the type cannot hold": ({"bits": 16, "kind": 2, "block": bytes(800), "nodata": "1e300"}, None),
    "nodata that is no number": ({"block": ELEVATIONS, "nodata": "none"}, None),
    "a CRS that is none": (
        {"block": ELEVATIONS, "georeference": {**GEOREFERENCE, 34735: (SHORT, [1, 1, 0, 1, 3072, 0, 1, 65000])}},
        None,
    ),
    "pixels without area": (
        {"block": ELEVATIONS, "georeference": {**GEOREFERENCE, 33550: (DOUBLE, [0.0, 0.0, 0.0])}},
        None,
    ),
    "places that are no numbers": (
        {"block": ELEVATIONS, "georeference": {**GEOREFERENCE, 33550: (DOUBLE, [float("nan"), float("inf"), 0.0])}},
        None,
    ),
    "a strip that is not there": ({}, "cannot be read as a GeoTIFF"),
}  # fmt: skip
"""Name -> (arguments of write_tiff, what is said of a chip of this elevation; None: it can be used)."""
