"""Writes a map of crossings as one GeoPackage that opens styled in QGIS: points, breach lines and the mapped area.

Points and lines have an elevation at every vertex, and the fields of the USGS specification of elevation-derived
hydrography (Techniques and Methods 11-B11, 2024 revision A2). The user gives the codes of that specification, which
depend on the project.

Styles are QML in the table `layer_styles`, which QGIS reads on its own.
"""

from __future__ import annotations

import difflib
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pyogrio
import shapely
from numpy.typing import ArrayLike, NDArray

from dxc.errors import ConfigError, DataError
from dxc.files import whole_file
from dxc.geo.breach import Breaches
from dxc.text import visible

if TYPE_CHECKING:
    import geopandas as gpd

Floats = NDArray[np.floating[Any]]

POINTS, LINES, AREA = "crossings", "breach_lines", "mapped_area"
"""Names of the layers."""


VERSION = {"VERSION": "1.3"}
"""Of GeoPackage. QGIS 3.22, which comes with Debian 12, warns of newer ones."""


class Field(NamedTuple):
    """A field of the USGS specification: its kind, and the longest text or the limits of a number."""

    kind: type
    least: int
    most: int


USGS_FIELDS: dict[str, Field] = {
    "FClass": Field(int, -(2**15), 2**15 - 1),
    "EClass": Field(int, -(2**15), 2**15 - 1),
    "FCode": Field(int, -(2**31), 2**31 - 1),
    "Desc": Field(str, 0, 250),
    "Source": Field(str, 0, 128),
    "Method": Field(str, 0, 250),
    "UserCode": Field(str, 0, 25),
}
"""Fields of the specification, in its order. FClass is 1 where a feature meets it, 2 where it does not, and 9
where it is no hydrography."""
POINT_COLUMNS = {"probability": float, "rank": int, "road_m": float, "tile": str, "model": str}
"""Columns of the points: probability of a crossing, rank by it from 1, length to the nearest road (m), the tile of the
map in which it was found, and the identity of the network."""
LINE_COLUMNS = {"rank": int, "probability": float, "z_upper": float, "z_lower": float, "length_m": float}

# Okabe and Ito's colours, as in figures; the surest points are the darkest
CLASSES = (
    (0.0, 0.5, "less than 0.5", "240,228,66"),
    (0.5, 0.7, "0.5 to 0.7", "230,159,0"),
    (0.7, 0.9, "0.7 to 0.9", "213,94,0"),
    (0.9, 1.0, "0.9 or more", "120,20,20"),
)
LINE_COLOUR, AREA_COLOUR = "0,114,178", "80,80,80"


# ------------------------------------------------------------------------------------------- frames


def point_frame(
    xyz: ArrayLike,
    crs: Any,
    probability: ArrayLike,
    *,
    road_m: ArrayLike | None = None,
    tile: Sequence[str] | None = None,
    model: str = "",
) -> gpd.GeoDataFrame:
    """The points of a map as write_layers() takes them, ranked by probability.

    Args:
        xyz: (n, 3) x and y in the CRS, elevation in m; NaN where it is not known.
        crs: of the coordinates.
        probability: (n,) of a crossing.
        road_m: (n,) length to the nearest road, m; None where no roads are known.
        tile: (n,) name of the tile of the map.
        model: identity of the network.
    """
    import geopandas as gpd

    at, p = np.asarray(xyz, float).reshape(-1, 3), np.asarray(probability, float).reshape(-1)
    rank = np.empty(len(p), np.int64)
    rank[np.argsort(-p, kind="stable")] = np.arange(1, len(p) + 1)
    columns = {
        "probability": p,
        "rank": rank,
        "road_m": np.full(len(p), np.nan) if road_m is None else np.asarray(road_m, float),
        "tile": [""] * len(p) if tile is None else list(tile),
        "model": [model] * len(p),
    }
    return gpd.GeoDataFrame(columns, geometry=shapely.points(at), crs=crs)


def line_frame(breaches: Breaches, points: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Breach lines as write_layers() takes them, each with the rank and probability of its point.

    Args:
        breaches: the lines of these points.
        points: of point_frame(), in the order in which the lines were asked for.
    """
    import geopandas as gpd

    own = [line.crossing for line in breaches.lines]
    xyz = np.array([line.xyz for line in breaches.lines], float).reshape(-1, 2, 3)
    metres = breaches.crs.linear_units_factor[1]
    columns = {
        "rank": points["rank"].to_numpy()[own],
        "probability": points["probability"].to_numpy()[own],
        "z_upper": xyz[:, 0, 2],
        "z_lower": xyz[:, 1, 2],
        "length_m": np.hypot(*(xyz[:, 1, :2] - xyz[:, 0, :2]).T) * metres,
    }
    return gpd.GeoDataFrame(columns, geometry=shapely.linestrings(xyz), crs=breaches.crs.to_wkt())


# ------------------------------------------------------------------------------------------- writing


def checked_codes(codes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the USGS fields, in their order; None for those that are not given.

    Raises:
        ConfigError: with a line for each field that does not exist, and each value that does not fit.
    """
    trouble = []
    for name in codes:
        if name not in USGS_FIELDS:
            near = difflib.get_close_matches(str(name), USGS_FIELDS, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            trouble.append(f"codes has no {name}{hint} Its fields are {', '.join(USGS_FIELDS)}")
    for name, field in USGS_FIELDS.items():
        value = codes.get(name)
        if value is None:
            continue
        if field.kind is str:
            if not isinstance(value, str) or len(value) > field.most:
                trouble.append(
                    f"codes.{name} must be a text of at most {field.most} characters, not {value!r}"
                )
        elif isinstance(value, bool) or not isinstance(value, int) or not field.least <= value <= field.most:
            trouble.append(
                f"codes.{name} must be a whole number, {field.least} to {field.most}, not {value!r}"
            )
    if trouble:
        raise ConfigError("\n".join(trouble))
    return {name: codes.get(name) for name in USGS_FIELDS}


def write_layers(
    path: Path,
    points: gpd.GeoDataFrame,
    lines: gpd.GeoDataFrame,
    area: gpd.GeoDataFrame,
    codes: Mapping[str, Any],
) -> None:
    """Write the layers with their styles. The file is there whole or not at all; one of that name is replaced.

    Lines and area are brought to the CRS of the points. Further columns of the frames are written as they are.

    Args:
        path: the new .gpkg.
        points: as of point_frame().
        lines: as of line_frame(); may be empty.
        area: polygons of what was mapped, with any columns.
        codes: values of USGS_FIELDS for points and lines; what is not given stays empty.

    Raises:
        ConfigError: a code that cannot work, or a name that does not end in .gpkg.
        DataError: a frame lacks a column or a CRS, or the file cannot be written.
    """
    if path.suffix.lower() != ".gpkg":
        raise ConfigError(f"{path}: a map is written as a GeoPackage; give a name that ends in .gpkg.")
    values = checked_codes(codes)
    if points.crs is None:
        raise DataError(f"{path}: the points have no CRS. Set it before they are written.")
    point_layer = _with_fields(_complete(points, POINT_COLUMNS, path), values)
    line_layer = _with_fields(_complete(_to_crs(lines, points.crs, path), LINE_COLUMNS, path), values)
    layers = (
        (AREA, "MultiPolygon", _multi(_to_crs(area, points.crs, path)), _area_style()),
        (LINES, "LineString Z", line_layer, _line_style()),
        (POINTS, "Point Z", point_layer, _point_style()),
    )
    try:
        with whole_file(path) as draft:
            for number, (name, geometry, frame, _) in enumerate(layers):
                pyogrio.write_dataframe(
                    frame, draft, layer=name, driver="GPKG", geometry_type=geometry, append=number > 0,
                    layer_options={"GEOMETRY_NAME": "geom"}, dataset_options=VERSION if number == 0 else None,
                )  # fmt: skip
            _write_styles(draft, {name: style for name, _, _, style in layers})
    except (OSError, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, sqlite3.Error) as error:
        raise DataError(
            f"{path}: cannot be written ({visible(error)[:300]}). Is there room on the disk, and may you write there?"
        ) from error


def _to_crs(frame: gpd.GeoDataFrame, crs: Any, path: Path) -> gpd.GeoDataFrame:
    if frame.crs is None:
        raise DataError(f"{path}: lines and area need a CRS. Set it before they are written.")
    return frame if frame.crs == crs else frame.to_crs(crs)


def _complete(frame: gpd.GeoDataFrame, columns: Mapping[str, type], path: Path) -> gpd.GeoDataFrame:
    """A frame with its columns of the right type, also where it is empty, and a z in every geometry."""
    if missing := [name for name in columns if name not in frame]:
        raise DataError(
            f"{path}: a layer lacks the columns {', '.join(missing)}; it needs {', '.join(columns)}."
        )
    frame = frame.copy()
    for name, kind in columns.items():
        frame[name] = frame[name].map(visible).astype(object) if kind is str else frame[name].astype(kind)
    shapes = frame.geometry.to_numpy()
    flat = ~shapely.has_z(shapes)
    if flat.any() and (shapely.get_type_id(shapes[flat]) != 0).any():
        raise DataError(f"{path}: a line has no elevations; each vertex needs one.")
    if flat.any():
        shapes = shapes.copy()
        shapes[flat] = shapely.points(*shapely.get_coordinates(shapes[flat]).T, np.full(flat.sum(), np.nan))
    return frame.set_geometry(shapes, crs=frame.crs)


def _with_fields(frame: gpd.GeoDataFrame, values: Mapping[str, Any]) -> gpd.GeoDataFrame:
    """The frame with the fields of the specification, of their own width."""
    import pandas as pd

    for name, field in USGS_FIELDS.items():
        value = values[name]
        if field.kind is str:
            frame[name] = pd.Series([value] * len(frame), index=frame.index, dtype=object)
        else:
            width = "Int16" if field.most < 2**15 else "Int32"
            frame[name] = pd.array([pd.NA if value is None else value] * len(frame), dtype=width)
    return frame


def _multi(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    shapes = [shapely.multipolygons(shapely.get_parts(shapely.force_2d(shape))) for shape in frame.geometry]
    return frame.set_geometry(np.array(shapes, object), crs=frame.crs)


# -------------------------------------------------------------------------------------------- styles


def _write_styles(path: Path, styles: Mapping[str, str]) -> None:
    """Write the table in which QGIS looks for styles, as QGIS makes it. It needs its row in gpkg_contents."""
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute(
                'CREATE TABLE layer_styles ("id" INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, '
                '"f_table_catalog" TEXT(256), '
                '"f_table_schema" TEXT(256), "f_table_name" TEXT(256), "f_geometry_column" TEXT(256), '
                '"styleName" TEXT(30), "styleQML" TEXT, "styleSLD" TEXT, "useAsDefault" BOOLEAN, "description" TEXT, '
                '"owner" TEXT(30), "ui" TEXT(30), "update_time" DATETIME DEFAULT '
                "(strftime('%Y-%m-%dT%H:%M:%fZ','now')))"
            )
            connection.executemany(
                "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, "
                "styleName, styleQML, styleSLD, useAsDefault, description, owner) "
                "VALUES ('', '', ?, 'geom', ?, ?, '', 1, ?, '')",
                [(name, name, style, f"dxc: {name.replace('_', ' ')}") for name, style in styles.items()],
            )
            connection.execute(
                "INSERT INTO gpkg_contents (table_name, data_type, identifier, description) "
                "VALUES ('layer_styles', 'attributes', 'layer_styles', '')"
            )
    finally:
        connection.close()


def _symbol(kind: str, name: str, layer: str, options: Mapping[str, str]) -> ElementTree.Element:
    """A symbol of QGIS.

    Args:
        kind: marker, line or fill.
        name: its number in the renderer.
        layer: the class of its only layer.
        options: of that layer.
    """
    symbol = ElementTree.Element(
        "symbol", type=kind, name=name, alpha="1", clip_to_extent="1", force_rhr="0"
    )  # fmt: skip
    inner = ElementTree.SubElement(
        symbol, "layer", {"class": layer, "enabled": "1", "locked": "0", "pass": "0"}
    )
    group = ElementTree.SubElement(inner, "Option", type="Map")
    for key, value in options.items():
        ElementTree.SubElement(group, "Option", name=key, type="QString", value=value)
    return symbol


def _qml(renderer: ElementTree.Element) -> str:
    root = ElementTree.Element("qgis", version="3.28.0", styleCategories="Symbology")
    root.append(renderer)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n"


def _renderer(kind: str, symbols: Sequence[ElementTree.Element], **attributes: str) -> ElementTree.Element:
    common = {"type": kind, "symbollevels": "0", "enableorderby": "0", "forceraster": "0"}
    element = ElementTree.Element("renderer-v2", {**common, **attributes})
    ElementTree.SubElement(element, "symbols").extend(symbols)
    return element


def _point_style() -> str:
    """Circles coloured by probability."""
    symbols = [
        _symbol(
            "marker", str(i), "SimpleMarker",
            {
                "name": "circle", "color": f"{colour},255", "outline_color": "255,255,255,255",
                "outline_style": "solid",
                "outline_width": "0.3", "outline_width_unit": "MM", "size": "3", "size_unit": "MM",
            },
        )
        for i, (_, _, _, colour) in enumerate(CLASSES)
    ]  # fmt: skip
    renderer = _renderer("graduatedSymbol", symbols, attr="probability", graduatedMethod="GraduatedColor")
    ranges = ElementTree.Element("ranges")
    for i, (lower, upper, label, _) in enumerate(CLASSES):
        ElementTree.SubElement(
            ranges,
            "range",
            lower=f"{lower:.6f}",
            upper=f"{upper:.6f}",
            symbol=str(i),
            label=label,
            render="true",
        )
    renderer.insert(0, ranges)
    return _qml(renderer)


def _line_style() -> str:
    """Blue lines: water."""
    options = {
        "line_color": f"{LINE_COLOUR},255", "line_style": "solid", "line_width": "0.8", "line_width_unit": "MM",
        "capstyle": "round", "joinstyle": "round",
    }  # fmt: skip
    return _qml(_renderer("singleSymbol", [_symbol("line", "0", "SimpleLine", options)]))


def _area_style() -> str:
    """A dashed outline that lets the ground be seen."""
    options = {
        "style": "no", "color": "255,255,255,0", "outline_color": f"{AREA_COLOUR},255", "outline_style": "dash",
        "outline_width": "0.5", "outline_width_unit": "MM",
    }  # fmt: skip
    return _qml(_renderer("singleSymbol", [_symbol("fill", "0", "SimpleFill", options)]))
