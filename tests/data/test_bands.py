"""Channels by value: signs, zero denominators, overflow, and independent references."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.preprocessing import MinMaxScaler

from dxc.data.bands import (
    PHOTO_BANDS,
    check_channels,
    elevation_above_local_mean,
    fixed_constants,
    needed_photo_bands,
    normalised_difference,
    repair_mean,
    repair_reference,
    scale_per_chip,
    scale_per_column,
    stack_channels,
)
from dxc.errors import ConfigError

NAN = np.nan
SEVEN = ["dem", "red", "green", "blue", "nir", "ndwi", "ndvi"]


def _photo(**bands: int) -> dict[str, np.ndarray]:
    return {name: np.full((1, 1), value, dtype=np.uint8) for name, value in bands.items()}


def test_indices_by_hand() -> None:
    photo = _photo(red=50, green=100, blue=7, nir=200)
    channels = stack_channels(np.zeros((1, 1)), photo, ["ndvi", "ndwi"])
    assert channels[0, 0, 0] == pytest.approx((200 - 50) / (200 + 50))  # vegetation: positive
    assert channels[1, 0, 0] == pytest.approx((100 - 200) / (100 + 200))  # no water: negative


def test_water_has_the_opposite_signs() -> None:
    photo = _photo(red=60, green=80, blue=90, nir=20)
    ndwi, ndvi = stack_channels(np.zeros((1, 1)), photo, ["ndwi", "ndvi"])
    assert ndwi.item() == pytest.approx(0.6)
    assert ndvi.item() == pytest.approx(-0.5)


def test_uint8_does_not_wrap_around() -> None:
    a, b = np.array([[10]], np.uint8), np.array([[250]], np.uint8)
    assert normalised_difference(a, b).item() == pytest.approx(-240 / 260)


def test_zero_over_zero_is_nan_and_zero_over_something_is_not() -> None:
    a, b = np.array([[0, 0, 9]], np.uint8), np.array([[0, 5, 0]], np.uint8)
    np.testing.assert_array_equal(normalised_difference(a, b), [[NAN, -1, 1]])


def test_channel_order_is_the_order_asked_for() -> None:
    photo = _photo(red=1, green=2, blue=3, nir=4)
    stacked = stack_channels(np.full((1, 1), 9.0), photo, ["nir", "dem", "red"], normalise="none")
    assert stacked[:, 0, 0].tolist() == [4, 9, 1]
    assert stacked.dtype == np.float32


def test_indices_come_from_raw_bands_whatever_the_normalisation() -> None:
    rng = np.random.default_rng(1)
    photo = {name: rng.integers(0, 255, (8, 8), dtype=np.uint8) for name in ("red", "green", "blue", "nir")}
    dem = rng.normal(size=(8, 8))
    by_mode = [
        stack_channels(dem, photo, SEVEN, normalise=mode)[5:] for mode in ("per_chip", "per_column", "none")
    ]
    np.testing.assert_array_equal(by_mode[0], by_mode[1])
    np.testing.assert_array_equal(by_mode[0], by_mode[2])


def test_per_chip_scales_the_whole_band() -> None:
    np.testing.assert_allclose(scale_per_chip(np.array([[2, 4], [6, 10]])), [[0, 0.25], [0.5, 1]])
    np.testing.assert_array_equal(scale_per_chip(np.full((2, 2), 7)), np.zeros((2, 2)))


@pytest.mark.parametrize("level", [0.0, 412.5], ids=["around 0", "at 412 m"])
@pytest.mark.parametrize("relief", [1e-3, 1.0, 30.0])
def test_per_column_equals_scikit_learn(level: float, relief: float) -> None:
    band = np.random.default_rng(3).normal(level, relief, (100, 100)).astype(np.float32)
    band[:, 4] = level  # a constant column
    expected = MinMaxScaler().fit_transform(band)
    np.testing.assert_allclose(scale_per_column(band), expected, atol=1e-4)
    assert (scale_per_column(band)[:, 4] == 0).all()


def test_per_column_loses_the_relation_between_columns() -> None:
    band = np.array([[0.0, 100], [1, 300]])
    np.testing.assert_array_equal(scale_per_column(band), [[0, 0], [1, 1]])
    assert scale_per_chip(band)[1, 0] < 0.01


def test_repair_mean_by_hand() -> None:
    index = np.array([[0.2, NAN, 0.4], [NAN, NAN, NAN], [0.0, 0.6, NAN]], dtype=np.float32)
    repaired = repair_mean(index)
    assert repaired[0, 1] == pytest.approx((0.2 + 0.4) / 2)  # the NaN below does not count
    assert repaired[1, 0] == pytest.approx((0.2 + 0.0) / 2)
    assert repaired[1, 1] == pytest.approx(0.6)  # its one valid neighbour
    assert repaired[2, 2] == pytest.approx(0.6)
    assert repaired[0, 0] == np.float32(0.2)  # what is valid stays


def test_repair_mean_without_any_neighbour_gives_zero() -> None:
    np.testing.assert_array_equal(repair_mean(np.full((2, 2), NAN, np.float32)), np.zeros((2, 2)))


def _published_repair(index: np.ndarray) -> np.ndarray:
    """The published repair, written differently: a flat loop over NaN positions that were found before."""
    size = index.shape[0]
    values = {(r, c): float(index[r, c]) for r in range(size) for c in range(size)}
    for place in [p for p in values if np.isnan(values[p])]:  # dicts keep row-major order
        r, c = place
        around = [
            (min(size - 1, r + 1), c),
            (max(0, r - 1), c),
            (r, min(size - 1, c + 1)),
            (r, max(0, c - 1)),
        ]
        values[place] = sum(values[q] for q in around if not np.isnan(values[q])) / 4
    return np.array([[values[r, c] for c in range(size)] for r in range(size)])


def test_repair_reference_equals_the_published_recipe() -> None:
    rng = np.random.default_rng(5)
    index = rng.uniform(-1, 1, (30, 30)).astype(np.float32)
    index[rng.random((30, 30)) < 0.3] = NAN
    np.testing.assert_allclose(repair_reference(index), _published_repair(index), atol=1e-6)


def test_repair_reference_divides_by_four_and_feeds_the_next_pixel() -> None:
    repaired = repair_reference(np.array([[0.8, NAN, NAN]], dtype=np.float32))
    np.testing.assert_allclose(repaired, [[0.8, 0.2, 0.05]])


def test_published_preprocessing_of_a_whole_chip() -> None:
    """All seven channels against the published steps, written out with scikit-learn and plain loops."""
    rng = np.random.default_rng(8)
    dem = rng.normal(400, 2, (40, 40)).astype(np.float32)
    raw = {
        n: rng.integers(0, 4, (40, 40), dtype=np.uint8) for n in ("red", "green", "blue", "nir")
    }  # many 0/0
    ours = stack_channels(dem, raw, SEVEN, normalise="per_column", repair="reference")
    data = {name: band.astype(np.float32) for name, band in raw.items()} | {"dem": dem}
    with np.errstate(invalid="ignore", divide="ignore"):
        ndwi = (data["green"] - data["nir"]) / (data["green"] + data["nir"])
        ndvi = (data["nir"] - data["red"]) / (data["nir"] + data["red"])
    expected = [MinMaxScaler().fit_transform(data[name]) for name in SEVEN[:5]]
    expected += [_published_repair(ndwi), _published_repair(ndvi)]
    np.testing.assert_allclose(ours, np.stack(expected), atol=1e-4)


def test_needed_bands() -> None:
    assert needed_photo_bands(["dem", "ndvi"]) == ["red", "nir"]
    assert needed_photo_bands(["dem"]) == []


@pytest.mark.parametrize(
    ("channels", "photo_bands", "says"),
    [
        (["dem", "swir"], ("red", "green", "blue", "nir"), "unknown channel 'swir'"),
        (["dem", "dem"], ("red", "green", "blue", "nir"), "twice"),
        ([], ("red",), "empty"),
        (["dem", "ndvi"], ("red", "green", "blue"), "needs the photo band.s. nir"),
    ],
)
def test_bad_channels(channels: list[str], photo_bands: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_channels(channels, photo_bands)


def test_photo_bands_come_in_the_order_of_a_naip_file() -> None:
    assert PHOTO_BANDS == ("red", "green", "blue", "nir")
    assert needed_photo_bands(["nir", "blue", "dem", "green", "red"]) == ["red", "green", "blue", "nir"]
    assert needed_photo_bands(["ndwi"]) == ["green", "nir"]
    assert needed_photo_bands(["ndvi", "ndwi", "red"]) == ["red", "green", "nir"]


def test_per_chip_reaches_from_0_to_1_whatever_the_extent() -> None:
    np.testing.assert_allclose(
        scale_per_chip(np.array([[0.2, 0.4], [0.3, 0.6]])), [[0, 0.5], [0.25, 1]], rtol=1e-6
    )
    np.testing.assert_allclose(scale_per_chip(np.array([[-3.0, 1], [0, 5]])), [[0, 0.5], [0.375, 1]])
    assert scale_per_chip(np.array([[2, 4]], np.uint8)).dtype == np.float32


def test_per_column_takes_only_what_float32_cannot_tell_apart_for_constant() -> None:
    """scikit-learn's limit is ten times the spacing of float32 numbers at 1, 1.2e-6."""
    np.testing.assert_allclose(scale_per_column(np.array([[0.0], [5e-5]])), [[0], [1]])
    np.testing.assert_allclose(scale_per_column(np.array([[0.0], [2e-6]])), [[0], [1]])
    np.testing.assert_allclose(scale_per_column(np.array([[0.0], [1e-6]])), [[0], [1e-6]])
    scaled = scale_per_column(np.array([[-2.0, 4], [0, 8], [6, 5]]))
    np.testing.assert_allclose(scaled, [[0, 0], [0.25, 1], [1, 0.25]], rtol=1e-6)
    assert scaled.dtype == np.float32


def test_repair_mean_of_each_neighbour_alone() -> None:
    """A hole in the middle with one valid neighbour (above, below, left or right). Diagonal ones do not count."""
    for row, column in ((0, 1), (2, 1), (1, 0), (1, 2)):
        index = np.full((3, 3), NAN, np.float32)
        index[row, column] = 0.5
        assert repair_mean(index)[1, 1] == 0.5
    corners = np.array([[0.5, NAN, 0.5], [NAN, NAN, NAN], [0.5, NAN, 0.5]], np.float32)
    assert repair_mean(corners)[1, 1] == 0
    whole = np.array([[0.1, -0.2]], np.float32)
    assert repair_mean(whole) is whole  # nothing to mend
    assert repair_mean(index).dtype == np.float32


def test_repair_reference_looks_at_the_border_pixel_itself() -> None:
    """Coordinates are clamped: beyond the border lies the pixel itself, which has no value."""
    repaired = repair_reference(np.array([[NAN, 0.8], [0.4, 0.2]], np.float32))
    assert repaired[0, 0] == pytest.approx((0.8 + 0.4) / 4)
    repaired = repair_reference(np.array([[0.1, 0.8], [0.4, NAN]], np.float32))
    assert repaired[1, 1] == pytest.approx((0.8 + 0.4) / 4)
    index = np.array([[NAN, 0.8]], np.float32)
    repair_reference(index)
    assert np.isnan(index[0, 0])  # in a copy


def test_each_normalisation_and_repair_is_the_one_asked_for() -> None:
    dem = np.array([[1.0, 10], [3, 30]])
    photo = {band: np.array([[0, 4], [8, 12]], np.uint8) for band in PHOTO_BANDS}
    photo["nir"] = np.array([[0, 12], [8, 4]], np.uint8)

    def channel(name: str, **options: str) -> list[list[float]]:
        return stack_channels(dem, photo, [name], **options)[0].tolist()

    assert channel("dem", normalise="none") == dem.tolist()
    assert channel("dem", normalise="per_column") == [[0, 0], [1, 1]]
    np.testing.assert_allclose(channel("dem"), [[0, 9 / 29], [2 / 29, 1]], rtol=1e-6)  # per chip by itself
    np.testing.assert_allclose(channel("red"), [[0, 1 / 3], [2 / 3, 1]], rtol=1e-6)
    # 0 / 0 in the corner; its two neighbours are (12 - 4) / 16 and 0
    assert channel("ndvi")[0] == [0.25, 0.5]
    assert channel("ndvi", repair="reference")[0] == [0.125, 0.5]


def test_channels_that_are_known_pass() -> None:
    check_channels(["dem", "red", "green", "blue", "nir", "ndwi", "ndvi"])
    check_channels(["ndvi"], ("nir", "red"))
    check_channels(["dem"], ())
    with pytest.raises(ConfigError, match=r"there are dem, red, green, blue, nir, ndwi, ndvi$"):
        check_channels(["height"])
    with pytest.raises(
        ConfigError, match=r"needs the photo band\(s\) green, nir, but source.photo_bands has only red"
    ):
        check_channels(["ndwi"], ("red",))


def test_a_plane_has_no_relief_wherever_its_chip_was_cut() -> None:
    row, column = np.mgrid[:100, :80]
    np.testing.assert_allclose(elevation_above_local_mean(500 + 0.05 * row - 0.2 * column), 0, atol=1e-5)


@pytest.mark.parametrize("edge", [200, 520])  # as a full and as a sparse matrix
def test_relief_is_elevation_less_the_gaussian_mean_away_from_borders(edge: int) -> None:
    dem = np.random.default_rng(0).normal(size=(edge, 190)).cumsum(0).cumsum(1)
    expected = dem - gaussian_filter(dem, 25, truncate=3)
    inner = np.s_[75:-75, 75:-75]
    np.testing.assert_allclose(elevation_above_local_mean(dem)[inner], expected[inner], atol=1e-4)


def test_relief_of_one_ground_hardly_depends_on_the_chip() -> None:
    """Two chips that share ground agree there: an embankment of 1 m on a slope, cut 30 m apart."""
    row, column = np.mgrid[:160, :160]
    dem = 300 + 0.03 * row + 0.0002 * column**2 + (np.abs(column - 80) < 4)
    one, other = elevation_above_local_mean(dem[:100, :100]), elevation_above_local_mean(dem[:100, 30:130])
    difference = np.abs(one[:, 30:] - other[:, :70])[:, 5:-5]
    assert (
        difference.max() < 0.2
    )  # metres; near the border of a chip, of an embankment half of which it shows
    assert 0.5 < one[50, 80] < 1


def test_fixed_constants_follow_from_the_type_of_the_photos() -> None:
    assert fixed_constants(["dem", "red", "ndvi"], "uint8") == {"mean": (0, 0, 0), "std": (1, 255, 1)}
    assert fixed_constants(["nir", "dem"], "uint16")["std"] == (65535, 1)
    photo = {"red": np.full((3, 3), 51, np.uint8)}
    fixed = fixed_constants(["red"], "uint8")
    assert stack_channels(None, photo, ["red"], normalise="fixed", **fixed)[0, 1, 1] == np.float32(0.2)
