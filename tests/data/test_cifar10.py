"""CIFAR-10's binary files: read as they were written, refused where they are damaged, fetched once and checked."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dxc import download
from dxc.data import cifar10
from dxc.data.cifar10 import FILES, FOLDER, RECORD_BYTES, Cifar10Source, read_batches, write_batch
from dxc.errors import ConfigError, DataError

CLASSES = tuple("abcdefghij")
COUNT = 20  # images a file


@pytest.fixture(autouse=True)
def _short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "RECORDS", COUNT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The six files with random pixels; image n of each has the label n mod 10."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in FILES:
        pixels = rng.integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8)
        write_batch(folder / name, pixels, np.arange(COUNT) % 10)
    return folder


@pytest.fixture
def archive(folder: Path) -> Path:
    path = folder.parent / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, arcname=FOLDER)
    return path


def test_a_record_is_a_label_and_three_planes(tmp_path: Path) -> None:
    """By hand: byte 0 is the label, byte 1 the red of the first pixel, byte 1 + 1024 its green, 1 + 2048 its blue."""
    record = bytearray(RECORD_BYTES)
    record[0], record[1], record[1 + 1024], record[1 + 2048], record[1 + 32] = 7, 10, 20, 30, 40
    for name in FILES:
        (tmp_path / name).write_bytes(bytes(record))
    images = read_batches(tmp_path, CLASSES)
    assert images.pixels.shape == (6, 3, 32, 32) and images.pixels.dtype == np.uint8
    assert images.pixels[0, :, 0, 0].tolist() == [10, 20, 30]
    assert images.pixels[0, :, 1, 0].tolist() == [40, 0, 0]  # the second row
    assert images.labels.tolist() == [7] * 6
    assert images.held_out.tolist() == [False] * 5 + [True]
    assert images.names[0] == "data_batch_1/0" and images.regions[-2:] == ("train", "test")
    write_batch(tmp_path / "again.bin", images.pixels[:1], images.labels[:1])
    assert (tmp_path / "again.bin").read_bytes() == bytes(record)


def test_folder_and_archive_hold_the_same(folder: Path, archive: Path) -> None:
    for root in (folder, folder.parent, archive):
        images = Cifar10Source(str(root), classes=CLASSES).read()
        assert len(images) == 6 * COUNT and images.held_out.sum() == COUNT
        found = images.data_hash
        assert found == read_batches(folder, CLASSES).data_hash and re.fullmatch("[0-9a-f]{16}", found)
    pixel = bytearray((folder / FILES[2]).read_bytes())
    pixel[100] ^= 1
    (folder / FILES[2]).write_bytes(pixel)
    assert Cifar10Source(str(folder), classes=CLASSES).read().data_hash != found


def test_damaged_files(folder: Path) -> None:
    source = Cifar10Source(str(folder), classes=CLASSES)
    test = folder / "test_batch.bin"
    whole = test.read_bytes()
    for content in (whole[:-1], whole[:-RECORD_BYTES], whole + b"\0", b""):
        test.write_bytes(content)
        says = (
            rf"test_batch.bin of .* has {len(content):,} bytes instead of {COUNT * RECORD_BYTES:,}: it is cut"
        )
        with pytest.raises(DataError, match=says):
            source.read()
    labelled = bytearray(whole)
    labelled[3 * RECORD_BYTES], labelled[9 * RECORD_BYTES] = 10, 255
    test.write_bytes(labelled)
    with pytest.raises(DataError, match="image 3 has the label 10, and labels are 0 to 9 .2 of 20 images"):
        source.read()
    test.unlink()
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(
        DataError, match=r"no complete CIFAR-10 .* data_batch_2.bin, test_batch.bin are missing"
    ):
        source.read()


def test_damaged_archives(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    cut, text, flipped = tmp_path / "cut.tar.gz", tmp_path / "text.tar.gz", tmp_path / "flipped.tar.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("no archive")
    flipped.write_bytes(whole[:5000] + bytes(byte ^ 255 for byte in whole[5000:5400]) + whole[5400:])
    for path in (cut, text, flipped):
        with pytest.raises(DataError, match=rf"{path.name} is no whole archive"):
            Cifar10Source(str(path), classes=CLASSES).read()
    with pytest.raises(DataError, match="there is no such file or folder"):
        Cifar10Source(str(tmp_path / "absent"), classes=CLASSES).check()


def test_an_archive_is_not_obeyed(archive: Path, tmp_path: Path) -> None:
    """Names that lead elsewhere, links and files that are too long leave nothing behind."""
    hostile = tmp_path / "hostile.tar"
    with tarfile.open(hostile, "w") as file:
        link = tarfile.TarInfo("../../data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        for name in FILES[1:]:
            long = tarfile.TarInfo(f"/tmp/{name}")
            long.size = COUNT * RECORD_BYTES + 10_000
            file.addfile(long, io.BytesIO(bytes(long.size)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="data_batch_1.bin is missing"):
        Cifar10Source(str(hostile), classes=CLASSES).read()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("classes", [CLASSES[:9], [*CLASSES[:9], "a"], "abcdefghij"])
def test_ten_names(classes: object) -> None:
    with pytest.raises(ConfigError, match="source.classes must be 10 different names"):
        Cifar10Source(classes=classes)  # type: ignore[arg-type]


class _Server(ThreadingHTTPServer):
    content = b""
    cut = 0  # the first answer ends after so many bytes
    asked: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        content, asked = self.server.content, self.headers.get("Range", "")
        self.server.asked.append(asked)
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = self.server.cut or len(content)
        self.server.cut = 0
        self.wfile.write(content[begin:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.content, server.asked = archive.read_bytes(), []
        monkeypatch.setattr(download, "CHUNK_BYTES", 5_000)
        monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz")
        monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(server.content).hexdigest())
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_it_is_fetched_once_and_goes_on_where_it_was_cut(
    server: _Server, folder: Path, tmp_path: Path
) -> None:
    source = Cifar10Source(classes=CLASSES, cache_dir=str(tmp_path / "cache"), progress=False)
    source.check()
    assert server.asked == []  # nothing is fetched to look
    server.cut = 30_000
    with pytest.raises(
        DataError, match=r"cannot be fetched from http://127.* what has arrived is kept, and the next try"
    ):
        source.prepare()
    assert not source.cache_dir.joinpath("cifar10", FOLDER).exists()
    first = source.read()
    assert server.asked == ["", "bytes=30000-"]
    assert first.data_hash == read_batches(folder, CLASSES).data_hash
    assert sorted(path.name for path in (tmp_path / "cache" / "cifar10").iterdir()) == [".lock", FOLDER]
    assert source.read().data_hash == first.data_hash and len(server.asked) == 2


def test_another_file_is_refused(server: _Server, tmp_path: Path) -> None:
    source = Cifar10Source(classes=CLASSES, cache_dir=str(tmp_path / "cache"), progress=False)
    right, server.content = server.content, b"something else"
    with pytest.raises(DataError, match="is not the published file: its SHA-256 is not .*source.root=FILE"):
        source.prepare()
    assert sorted(path.name for path in (tmp_path / "cache" / "cifar10").iterdir()) == [".lock"]
    server.content = right
    assert len(source.read()) == 6 * COUNT
