"""Published packages: forests from pickles that are not executed, fetching, unpacking."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingRegressor, RandomForestRegressor

from dxc.errors import HardwareError
from dxc.hardware.predict import packages as module
from dxc.hardware.predict.forest import Forest
from dxc.hardware.predict.packages import PUBLISHED, available, check_name, find_package, load_package, unpack
from dxc.hardware.predict.pickles import read_forest

FIXTURES = Path(__file__).parents[2] / "fixtures"
ARCHIVE = FIXTURES / "nn_meter_forests.zip"
NAME = "forests_sklearn_0_23"
EXPECTED = json.loads((FIXTURES / "nn_meter_forests.json").read_text())


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The fixture, unpacked."""
    unpack(ARCHIVE, tmp_path, NAME)
    return tmp_path / NAME


@pytest.mark.parametrize("model", [RandomForestRegressor, ExtraTreesRegressor, GradientBoostingRegressor])
def test_forest_equals_scikit_learn(model: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features, target = rng.random((200, 5)) * 100, rng.random(200)
    fitted = model(n_estimators=30, random_state=0).fit(features, target)
    Forest.from_sklearn(fitted).save(tmp_path / "forest.npz")
    other = rng.random((50, 5)) * 100
    np.testing.assert_allclose(
        Forest.load(tmp_path / "forest.npz").predict(other), fitted.predict(other), rtol=0, atol=1e-9
    )


def test_forest_goes_left_where_the_rounded_feature_equals_the_threshold() -> None:
    """By hand: 0.1 as float32 is over 0.1 as float64, so it goes right; 2 <= 2 goes left."""
    one = {"feature": [0, -2, -2], "left": [1, -1, -1], "right": [2, -1, -1], "value": [0.0, 3.0, 5.0]}
    tree = {key: np.array(value) for key, value in one.items()}
    low = Forest.joined([tree | {"threshold": np.array([0.1, 0, 0])}], base=1.0, weight=2.0, n_features=1)
    assert low.predict([[0.1], [0.09]]).tolist() == [11.0, 7.0]
    high = Forest.joined(
        [tree | {"threshold": np.array([2.0, 0, 0])}] * 2, base=0.0, weight=0.5, n_features=1
    )
    assert high.predict([[2.0], [2.5]]).tolist() == [3.0, 5.0]


@pytest.mark.parametrize("kernel", EXPECTED)
def test_pickled_forests_predict_as_scikit_learn_0_23_did(kernel: str, package: Path) -> None:
    forest = read_forest(package / f"{kernel}.pkl")
    assert len(forest.roots) == {"conv-bn-relu": 320, "dwconv-bn-relu": 240, "fc": 370}[kernel]
    predicted = forest.predict(EXPECTED[kernel]["features"])
    np.testing.assert_allclose(predicted, EXPECTED[kernel]["ms"], rtol=0, atol=1e-9)


def test_a_package_is_converted_once(package: Path) -> None:
    first = load_package(package)
    assert sorted(first.regressors) == sorted(EXPECTED)
    assert first.about == {}
    converted = (package / "fc.npz").stat().st_mtime_ns
    (package / "fc.pkl").write_bytes(b"never read again")
    os.utime(package / "fc.pkl", ns=(0, 0))
    again = load_package(package)
    assert (package / "fc.npz").stat().st_mtime_ns == converted
    np.testing.assert_array_equal(again.regressors["fc"].value, first.regressors["fc"].value)


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _in_forest(inner: Any, package: Path) -> bytes:
    """A pickle of the forest's own class with something else inside its state."""
    inside = pickle.dumps(inner, protocol=2)[2:-1]
    # GLOBAL class, empty arguments, NEWOBJ, {'estimators_': [inner]}, BUILD
    head = b"\x80\x02csklearn.ensemble._forest\nRandomForestRegressor\n)\x81}X\x0b\x00\x00\x00estimators_"
    return head + b"]" + inside + b"asb."


MARKER = "touched"
MALICIOUS = {
    "os.system": ("posix.system", lambda marker: pickle.dumps(_Call(os.system, f"touch {marker}"))),
    "eval": ("builtins.eval", lambda marker: pickle.dumps(_Call(eval, f"open({str(marker)!r}, 'w')"))),
    "protocol 0": (
        "posix.system",
        lambda marker: b"cposix\nsystem\n(S'touch %s'\ntR." % str(marker).encode(),
    ),
    "inst": ("posix.system", lambda marker: b"(S'touch %s'\niposix\nsystem\n." % str(marker).encode()),
    "dotted": (
        "sklearn.tree._tree.Tree.__init__",
        lambda marker: b"\x80\x04\x8c\x12sklearn.tree._tree\x8c\x0dTree.__init__\x93.",
    ),
    "numpy's loader": ("numpy.load", lambda marker: b"cnumpy\nload\n(S'%s'\ntR." % str(marker).encode()),
    "inside": (
        "posix.system",
        lambda marker: _in_forest(_Call(os.system, f"touch {marker}"), marker),
    ),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_malicious_pickles_run_nothing(case: str, package: Path) -> None:
    asked, content = MALICIOUS[case]
    marker, path = package / MARKER, package / "fc.pkl"
    path.write_bytes(content(marker))
    with pytest.raises(HardwareError) as caught:
        read_forest(path)
    assert str(path) in str(caught.value)
    assert f"asks for {asked}," in str(caught.value)
    assert not marker.exists()


DAMAGED = {
    "empty": b"",
    "text": b"not a pickle",
    "other object": pickle.dumps([1, 2]),
    "only a class": b"\x80\x02csklearn.ensemble._forest\nRandomForestRegressor\n.",
    "persistent id": b"Pfoo\n.",
    "extension": b"\x80\x02\x82\x01.",
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "stand-in rebuilt": b"csklearn.tree._tree\nTree\n}X\x03\x00\x00\x00fooNsb.",
    "objects": pickle.dumps(np.array([object], dtype=object), protocol=2),
    "no trees": b"\x80\x02csklearn.ensemble._forest\nRandomForestRegressor\n)\x81}X\x0b\x00\x00\x00estimators_]sb.",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_pickles_are_named(case: str, tmp_path: Path) -> None:
    path = tmp_path / "fc.pkl"
    path.write_bytes(DAMAGED[case])
    with pytest.raises(HardwareError, match="fc.pkl"):
        read_forest(path)


def test_a_truncated_or_changed_forest_is_refused(package: Path) -> None:
    path = package / "fc.pkl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(HardwareError, match="fc.pkl"):
        read_forest(path)
    path.write_bytes(content)
    forest = read_forest(path)
    with pytest.raises(ValueError, match="outside of its tree"):  # a loop would never end
        Forest(**{**forest.__dict__, "left": np.where(forest.feature >= 0, 0, -1).astype(np.int32)})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "fusion_rules.json").unlink(), "no fusion_rules.json"),
        (lambda folder: (folder / "fusion_rules.json").write_text("[1]"), "not a file of fusion rules"),
        (lambda folder: (folder / "fusion_rules.json").write_text("{"), "not a file of fusion rules"),
        (lambda folder: [p.unlink() for p in folder.glob("*.pkl")], "no KERNEL.pkl and no KERNEL.npz"),
        (lambda folder: (folder / "relu.npz").write_bytes(b"PK\x03\x04 torn"), "relu.npz"),
        (lambda folder: (folder / "package.json").write_text('{"name": 1}'), "package.json"),
    ],
)
def test_damaged_and_foreign_packages_are_named(spoil: Any, said: str, package: Path) -> None:
    spoil(package)
    with pytest.raises(HardwareError, match=said):
        load_package(package)


@pytest.mark.parametrize(
    "entry", ["../evil.txt", "/evil.txt", "p/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"]
)
def test_zip_entries_that_leave_the_folder_are_refused(entry: str, tmp_path: Path) -> None:
    archive = tmp_path / "p.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("p/fusion_rules.json", "{}")
        opened.writestr(entry, "evil")
    with pytest.raises(HardwareError, match="leaves the package's folder"):
        unpack(archive, tmp_path, "p")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.zip"]
    assert not (tmp_path.parent / "evil.txt").exists()


def test_a_predictor_that_was_not_converted_is_converted_beside_those_that_were(package: Path) -> None:
    """The state after a kill: the first of several files exists, a later one does not."""
    kernels = sorted(load_package(package).regressors)
    assert len(kernels) > 1
    (package / f"{kernels[-1]}.npz").unlink()
    assert sorted(load_package(package).regressors) == kernels
    assert (package / f"{kernels[-1]}.npz").is_file()


def test_a_description_has_every_key(package: Path) -> None:
    about = dict.fromkeys(("target", "device", "runtime", "runtime_version", "threads"), "known")
    (package / "package.json").write_text(json.dumps(about))
    assert load_package(package).about == about
    for key in about:
        (package / "package.json").write_text(json.dumps({each: "known" for each in about if each != key}))
        with pytest.raises(HardwareError, match=r"package.json does not describe a calibrated package"):
            load_package(package)


def test_zip_links_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "p.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        link = zipfile.ZipInfo("p/fusion_rules.json")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(HardwareError, match="leaves the package's folder"):
        unpack(archive, tmp_path, "p")


def _bomb(archive: Path, names: list[str], size: int) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in names:
            opened.writestr(name, bytes(size))


def test_zips_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 1_999_999)
    archive = tmp_path / "p.zip"
    _bomb(archive, ["p/fusion_rules.json", "p/a.pkl"], 1_000_000)
    assert archive.stat().st_size < 10_000
    with pytest.raises(HardwareError, match="nothing was unpacked"):
        unpack(archive, tmp_path, "p")
    _bomb(archive, [f"p/{number}.pkl" for number in range(1001)], 0)
    with pytest.raises(HardwareError, match="1000 files"):
        unpack(archive, tmp_path, "p")
    assert [path.name for path in tmp_path.iterdir()] == ["p.zip"]
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 2_000_000)
    _bomb(archive, ["p/fusion_rules.json", "p/a.pkl"], 1_000_000)
    unpack(archive, tmp_path, "p")  # as much as is allowed
    assert (tmp_path / "p" / "a.pkl").stat().st_size == 1_000_000


def test_a_zip_with_damaged_content_is_named(tmp_path: Path) -> None:
    """The directory of the archive is intact, so only decompression reveals the damage. zlib has its own error."""
    archive = tmp_path / "p.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("p/fusion_rules.json", os.urandom(300) * 50)
    content = bytearray(archive.read_bytes())
    content[60:90] = b"\xff" * 30
    archive.write_bytes(content)
    with pytest.raises(HardwareError, match="p.zip cannot be unpacked"):
        unpack(archive, tmp_path, "p")
    assert [path.name for path in tmp_path.iterdir()] == ["p.zip"]


class _Release(BaseHTTPRequestHandler):
    """Serves the fixture under a published name; cuts the first transfer of each file after a third."""

    content: ClassVar[bytes] = ARCHIVE.read_bytes()
    ranges: ClassVar[list[str | None]] = []
    knows_ranges: ClassVar[bool] = True
    content_range: ClassVar[str] = ""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.knows_ranges else 0
        past = first >= len(self.content)
        self.send_response(416 if past else 206 if first else 200)
        first = min(first, len(self.content))
        if self.content_range and first and not past:
            self.send_header("Content-Range", self.content_range)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        cut = len(self.content) // 3 if len(self.ranges) == 1 else len(self.content)
        self.wfile.write(self.content[first:cut])
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def release() -> Iterator[str]:
    _Release.ranges, _Release.knows_ranges, _Release.content = [], True, _renamed()
    _Release.content_range = ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Release)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1.0-data"
    server.shutdown()
    server.server_close()


def _renamed() -> bytes:
    """The fixture under a published name."""
    import io

    content = io.BytesIO()
    with zipfile.ZipFile(ARCHIVE) as old, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry.replace(NAME, PUBLISHED[0]), old.read(entry))
    return content.getvalue()


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_an_interrupted_download_goes_on(knows_ranges: bool, release: str, tmp_path: Path) -> None:
    _Release.knows_ranges = knows_ranges
    with pytest.raises(HardwareError, match=PUBLISHED[0]):
        find_package(PUBLISHED[0], packages_dir=tmp_path, packages_url=release, progress=False)
    arrived = (tmp_path / f"{PUBLISHED[0]}.zip.partial").stat().st_size
    assert 0 < arrived < len(_Release.content)
    package = find_package(PUBLISHED[0], packages_dir=tmp_path, packages_url=release, progress=False)
    assert _Release.ranges == [None, f"bytes={arrived}-"]
    forest = package.regressors["fc"]
    np.testing.assert_allclose(forest.predict(EXPECTED["fc"]["features"]), EXPECTED["fc"]["ms"], atol=1e-9)

    # the archive is on record: another one of that name is refused
    shutil.rmtree(tmp_path / PUBLISHED[0])
    (tmp_path / f"{PUBLISHED[0]}.zip").unlink()
    _Release.content = _Release.content + b"x"
    with pytest.raises(HardwareError, match="has changed since"):
        find_package(PUBLISHED[0], packages_dir=tmp_path, packages_url=release, progress=False)
    assert not (tmp_path / PUBLISHED[0]).exists()


@pytest.mark.parametrize("left_over", ["longer than the file", "from another place"])
def test_what_is_left_of_another_file_is_dropped(left_over: str, release: str, tmp_path: Path) -> None:
    """After 416, or 206 with a Content-Range that begins elsewhere, the same call fetches from the beginning."""
    longer = left_over == "longer than the file"
    _Release.ranges.append("so that the first transfer is not cut")
    _Release.content_range = "bytes 0-99/100"
    arrived = len(_Release.content) + 5 if longer else 1000
    (tmp_path / f"{PUBLISHED[0]}.zip.partial").write_bytes(b"x" * arrived)
    find_package(PUBLISHED[0], packages_dir=tmp_path, packages_url=release, progress=False)
    assert _Release.ranges[1:] == [f"bytes={arrived}-", None]
    assert (tmp_path / f"{PUBLISHED[0]}.zip").read_bytes() == _Release.content


def test_a_log_in_page_does_not_become_the_record(release: str, tmp_path: Path) -> None:
    """The log-in page of a hotel's network is no archive. It must not make a later fetch of the real one fail."""
    _Release.ranges.append("so that the first transfer is not cut")
    true, _Release.content = _Release.content, b"<html>log in</html>"
    with pytest.raises(HardwareError, match="cannot be unpacked.*remove it"):
        find_package(PUBLISHED[0], packages_dir=tmp_path, packages_url=release, progress=False)
    (tmp_path / f"{PUBLISHED[0]}.zip").unlink()  # as the message says
    _Release.content = true
    find_package(PUBLISHED[0], packages_dir=tmp_path, packages_url=release, progress=False)
    recorded = json.loads((tmp_path / "hashes.json").read_text())
    assert recorded == {f"{PUBLISHED[0]}.zip": f"sha256:{hashlib.sha256(true).hexdigest()}"}


def test_two_processes_fetch_once(release: str, tmp_path: Path) -> None:
    _Release.ranges.append("so that the first transfer is not cut")
    code = (
        "import sys; from pathlib import Path; from dxc.hardware.predict.packages import find_package\n"
        "name, folder, url = sys.argv[1:]\n"
        "package = find_package(name, packages_dir=Path(folder), packages_url=url, progress=False)\n"
        "print(sorted(package.regressors))"
    )
    command = [sys.executable, "-c", code, PUBLISHED[0], str(tmp_path), release]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for each in both:
        out, err = each.communicate(timeout=60)
        assert (each.returncode, out) == (0, f"{sorted(EXPECTED)}\n"), err
    assert _Release.ranges[1:] == [None]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    for content in ("{", "[1]", '{"a": 1}'):
        (tmp_path / "hashes.json").write_text(content)
        with pytest.raises(HardwareError, match="hashes.json is damaged"):
            find_package(
                PUBLISHED[0], packages_dir=tmp_path, packages_url="http://127.0.0.1:9", progress=False
            )


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "packages").write_text("a file")
    with pytest.raises(HardwareError, match=re.escape(f"{tmp_path / 'packages'}")) as caught:
        find_package(PUBLISHED[0], packages_dir=tmp_path / "packages", progress=False)
    assert "hardware.packages_dir=" in str(caught.value)


def test_a_package_in_a_folder_that_cannot_be_written_stays_in_memory(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Forest, path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Forest, "save", refuse)  # root may write anywhere
    read = load_package(package).regressors["fc"]
    np.testing.assert_allclose(read.predict(EXPECTED["fc"]["features"]), EXPECTED["fc"]["ms"], atol=1e-9)
    assert not list(package.glob("*.npz"))


def test_offline_there_is_one_message_with_address_and_folder(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1.0-data"  # nobody listens on the discard port
    with pytest.raises(HardwareError) as caught:
        find_package(PUBLISHED[1], packages_dir=tmp_path, packages_url=url, progress=False)
    message = str(caught.value)
    assert f"{url}/{PUBLISHED[1]}.zip" in message
    assert str(tmp_path) in message
    assert "hardware.packages_dir=" in message


@pytest.mark.parametrize("name", ["nobody", "../x", "", "a/b"])
def test_unknown_names_list_those_there_are(name: str, package: Path) -> None:
    with pytest.raises(HardwareError, match=f"(?s){NAME}.*{PUBLISHED[3]}"):
        check_name(name, package.parent)
    assert NAME in available(package.parent)
