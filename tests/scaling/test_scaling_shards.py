"""Shards of webdataset: who reads what, and what is refused. The shards are real tar files, written here."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dxc.config.checked import checked
from dxc.errors import ConfigError, DataError
from dxc.scaling.images import MEAN, STD, Images, Rank, refuse_or_warn
from dxc.scaling.launch import launch_here
from dxc.scaling.sources import described, images_of
from dxc.scaling.worker import REQUEST, Request
from dxc.untrusted import MAX_JSON_BYTES, load_json
from tests.scaling.runs import result_of, written

pytest.importorskip("webdataset", reason="pip install -e '.[webdataset]' -c constraints.txt")

CLASSES = 4
EACH = 6
"""Images of a shard."""
SOURCE = {
    "kind": "webdataset", "val_shards": None, "classes": CLASSES, "workers": 0, "on_bad_file": "raise", "shuffled": 100,
}  # fmt: skip
DATA = {"channels": ["red", "green", "blue"]}
Member = tuple[str, bytes]


def _png(number: int) -> bytes:
    """One colour, so that the number is still there after a crop."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def _members(numbers: Sequence[int]) -> list[Member]:
    """Image N of class N modulo CLASSES."""
    return [
        member
        for number in numbers
        for member in (
            (f"{number:04}.png", _png(number)),
            (f"{number:04}.cls", str(number % CLASSES).encode()),
        )
    ]


def _write(path: Path, members: Sequence[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four shards to train with images 0 to 23, and two to validate with images 24 to 35."""
    for number in range(6):
        name = f"train-{number}" if number < 4 else f"val-{number - 4}"
        _write(tmp_path / f"{name}.tar", _members(range(EACH * number, EACH * (number + 1))))
    return tmp_path


def _look(folder: Path, **more: Any) -> dict[str, Any]:
    given = {"shards": f"{folder}/train-{{0..3}}.tar", "val_shards": f"{folder}/val-{{0..1}}.tar", **more}
    return described({**SOURCE, **given}, DATA, size=8, folder=folder / "lists")


def _listed(about: dict[str, Any], part: str) -> list[str]:
    return [Path(path).name for path in json.loads(Path(about["listing"]).read_text())[part]]


def _of_rank(about: dict[str, Any], number: int = 0, total: int = 1) -> Images:
    return images_of(about, Rank(number, total, torch.device("cpu"), 0))


def _numbers(batches: Iterator[tuple[Tensor, Tensor]]) -> list[int]:
    """Which images came; their classes belong to them."""
    found: list[int] = []
    for images, labels in batches:
        assert images.shape == (len(labels), 3, 8, 8) and images.dtype == torch.float32
        reds = (255 * (images[:, 0, 4, 4] * STD[0] + MEAN[0])).round().int().tolist()
        assert [red % CLASSES for red in reds] == labels.tolist()
        found += reds
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_loader_processes_read_each_image_once_an_epoch(folder: Path, workers: int) -> None:
    about = _look(folder, workers=workers)
    assert (about["kind"], about["classes"], about["images"]) == ("shards", CLASSES, 0)
    epoch = 2 * EACH // 3  # batches of three from the two shards of a rank
    ranks = [_of_rank(about, number, 2) for number in (0, 1)]
    trained = [_numbers(islice(rank.train(3), epoch)) for rank in ranks]
    assert sorted(trained[0] + trained[1]) == list(range(24))
    held_out = [_numbers(rank.validation(4)) for rank in ranks]
    assert sorted(held_out[0] + held_out[1]) == list(range(24, 36))
    assert not any(rank.left_out for rank in ranks)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ranks_share_the_images_of_one_shard_to_validate(folder: Path, workers: int) -> None:
    about = _look(folder, val_shards=f"{folder}/val-0.tar", workers=workers)
    shares = [sorted(_numbers(_of_rank(about, number, 3).validation(4))) for number in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    assert sorted(number for share in shares for number in share) == list(range(24, 30))


def test_the_order_is_drawn_anew_in_each_epoch_and_is_the_same_for_a_seed(folder: Path) -> None:
    about = _look(folder)
    epochs = _numbers(islice(_of_rank(about).train(EACH), 8))
    first, second = epochs[:24], epochs[24:]
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != list(range(24)) and first != second
    assert _numbers(islice(_of_rank(about).train(EACH), 8)) == epochs
    unshuffled = _numbers(islice(_of_rank(_look(folder, shuffled=0)).train(EACH), 1))
    assert unshuffled == list(range(unshuffled[0], unshuffled[0] + EACH))  # one shard, as it is


def test_without_shards_to_validate_every_tenth_is_held_out(folder: Path) -> None:
    about = _look(folder, val_shards=None)
    assert _listed(about, "val") == ["train-1.tar"]
    assert _listed(about, "train") == ["train-0.tar", "train-2.tar", "train-3.tar"]
    assert about["shards"] == 3
    with pytest.raises(ConfigError, match="source.shards is one shard, of which none can be held out"):
        _look(folder, shards=f"{folder}/train-0.tar", val_shards=None)


@pytest.mark.parametrize(
    "address",
    [
        "pipe:touch obeyed #.tar",
        "{pipe,pipe}:touch obeyed #{0..1}.tar",
        "train/../pipe:touch obeyed",
        "https://127.0.0.1/train-0.tar",
        "file:train-0.tar",
        "s3://bucket/train-0.tar::train-1.tar",
    ],
)
def test_addresses_are_refused(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for key in ("shards", "val_shards"):
        with pytest.raises(
            ConfigError, match=rf"source\.{key}: .* is taken for an address, and shards are files"
        ):
            _look(folder, **{key: address})
    assert not (folder / "obeyed").exists()


def test_neither_standard_input_nor_a_pipe_is_read(folder: Path) -> None:
    os.mkfifo(folder / "waiting.tar")
    for name in ("-", str(folder / "waiting.tar")):
        with pytest.raises(DataError, match=r"source\.shards: 1 of 1 file are not there"):
            _look(folder, shards=name)


class _Obeyed:
    """A pickle that runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_only_images_and_classes_are_read(folder: Path) -> None:
    """webdataset's own decoders would unpickle .pyd, .pickle and .pth."""
    bad = pickle.dumps(_Obeyed(folder / "obeyed"))
    more = [
        (f"{number:04}.{suffix}", bad)
        for number in range(EACH)
        for suffix in ("pyd", "pickle", "pth", "npy", "json")
    ]
    _write(folder / "train-0.tar", sorted(_members(range(EACH)) + more))
    assert sorted(_numbers(islice(_of_rank(_look(folder)).train(EACH), 4))) == list(range(24))
    assert not (folder / "obeyed").exists()


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("size", [5 * 512 + 100, 6 * 512, 6 * 512 + 40, 8 * 512])
def test_a_shard_that_was_cut_off_is_named(folder: Path, size: int) -> None:
    """In an image, between two members, in the head of one."""
    bad = folder / "train-2.tar"
    _cut(bad, size)
    with pytest.raises(DataError, match=r"1 shard cannot be used:\n  \S+train-2\.tar: it is cut off"):
        _look(folder)
    about = _look(folder, on_bad_file="skip")
    assert _listed(about, "train") == ["train-0.tar", "train-1.tar", "train-3.tar"]


def test_a_shard_that_is_cut_off_after_the_look(folder: Path) -> None:
    about = _look(folder, workers=1)
    _cut(folder / "train-2.tar", 512 + 20)
    with pytest.raises(DataError) as caught:
        _numbers(islice(_of_rank(about).train(EACH), 4))
    assert str(caught.value).startswith(f"{folder}/train-2.tar: it cannot be read to its end: ")
    assert "Traceback" not in str(caught.value)


def _repeat(path: Path) -> None:
    """0004 is there twice."""
    members = _members(range(EACH))
    _write(path, [*members[:9], members[8], *members[9:]])


@pytest.mark.parametrize(
    ("spoil", "lost"),
    [
        (_repeat, [4, 5]),
        (lambda path: _cut(path, 16 * 512 + 532), [3, 4, 5]),  # in 0004.png: 0003 may have had more members
        (Path.unlink, list(range(EACH))),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_turns_out_bad_is_left_out(
    folder: Path, spoil: Callable[[Path], None], lost: list[int], workers: int
) -> None:
    about = _look(folder, workers=workers, on_bad_file="skip")
    spoil(folder / "train-0.tar")
    rank = _of_rank(about)
    epoch = 24 - len(lost)
    assert sorted(_numbers(islice(rank.train(epoch), 1))) == [n for n in range(24) if n not in lost]
    assert rank.left_out == {(f"{folder}/train-0.tar", "")}
    spoil(folder / "val-1.tar")
    rank = _of_rank(about)
    assert set(range(24, 30)) <= set(_numbers(rank.validation(4)))
    assert rank.left_out == {(f"{folder}/val-1.tar", "")}


def test_a_rank_whose_shards_of_an_epoch_are_all_bad_goes_on_to_the_next(folder: Path) -> None:
    about = _look(folder, on_bad_file="skip")
    for number in (0, 1, 3):
        (folder / f"train-{number}.tar").unlink()
    for number in range(4):
        assert _numbers(islice(_of_rank(about, number, 4).train(EACH), 1))[0] // EACH == 2
    (folder / "train-2.tar").unlink()
    with pytest.raises(DataError, match=r"train-\d.tar: there are no images that can be used"):
        next(_of_rank(about, 0, 4).train(EACH))


def _overwritten(path: Path, at: int, by: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(by)


FOURTH = 3 * 4 * 512
"""Where the head of 0003.png is: each image and each class has a block and a head."""


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: _overwritten(path, FOURTH, bytes(512)), f"it is damaged after {FOURTH} bytes"),
        (lambda path: _overwritten(path, FOURTH + 20, b"x"), f"it is damaged after {FOURTH} bytes"),
        (lambda path: _cut(path, FOURTH), "the end of the archive is missing"),
        (lambda path: _cut(path, FOURTH + 40), f"it is damaged after {FOURTH} bytes"),
        (
            lambda path: path.write_bytes(2 * path.read_bytes()),
            r"it is damaged after \d+ bytes",
        ),  # one after the other
    ],
)
def test_a_shard_damaged_in_the_middle_loses_no_images_in_silence(
    folder: Path, spoil: Callable[[Path], None], says: str
) -> None:
    about = _look(folder)
    spoil(folder / "train-0.tar")
    with pytest.raises(DataError, match=rf"train-0\.tar: it cannot be read to its end: {says}"):
        _numbers(islice(_of_rank(about).train(EACH), 4))
    rank = _of_rank({**about, "on_bad_file": "skip"})
    whole = EACH if "d+" in says else 3
    assert set(_numbers(islice(rank.train(18), 2))) >= {*range(whole - 1), *range(EACH, 24)}
    assert rank.left_out == {(f"{folder}/train-0.tar", "")}


def test_members_about_a_shard_and_zeros_after_it_do_no_harm(folder: Path) -> None:
    path = folder / "train-0.tar"
    _write(path, [("__meta__/0.png", _png(0)), *_members(range(EACH)), ("long/" * 40 + "9.txt", b"x" * 5000)])
    _overwritten(path, path.stat().st_size, bytes(3 * 2**20))
    assert sorted(_numbers(islice(_of_rank(_look(folder)).train(EACH), 4))) == list(range(24))


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named_or_counted(folder: Path, workers: int) -> None:
    members = _members(range(EACH))
    members[4] = (members[4][0], b"no image")  # 0002.png
    _write(folder / "train-0.tar", members)
    about = _look(folder, workers=workers)  # only the first image of a shard is looked at
    with pytest.raises(DataError) as caught:
        _numbers(islice(_of_rank(about).train(EACH), 4))
    assert str(caught.value) == f"{folder}/train-0.tar: 0002.png cannot be decoded: it is no image"
    rank = _of_rank(_look(folder, workers=workers, on_bad_file="skip"))
    seen = _numbers(islice(rank.train(23), 1))
    assert sorted(seen) == [number for number in range(24) if number != 2]
    assert rank.left_out == {(f"{folder}/train-0.tar", "0002")}


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("0.png", _png(0))], r"0 has no \.cls"),
        ([("0.cls", b"1")], r"0 has no image \(jpeg, jpg, png"),
        ([("0.png", _png(0)), ("0.cls", b"4")], r"0\.cls holds b'4', which is no class from 0 to 3"),
        ([("0.png", _png(0)), ("0.cls", b"cat")], r"0\.cls holds b'cat', which is no class from 0 to 3"),
        ([("0.png", _png(0)), ("0.cls", b"9" * 5000)], r"0\.cls holds b'9{20}', which is no class"),
        ([("0.png", b""), ("0.cls", b"1")], r"0\.png cannot be decoded"),
        ([("readme.txt", b"images")], "it holds no images\n"),
        (
            [("a.b/img.001.JPG", _png(0)), ("a.b/img.001.cls", b"1")],
            r"it holds no images that can be read: img\.001\.JPG has the suffix 001\.JPG, because webdataset takes "
            r"everything after the first dot for it; rename it to img_001\.JPG, and its class likewise\n",
        ),
        ([("0.png", _png(0)), ("0.png", _png(1))], "it cannot be read to its end: 0.png: duplicate file name"),
    ],
)  # fmt: skip
def test_what_a_shard_must_hold(folder: Path, members: list[Member], says: str) -> None:
    _write(folder / "train-1.tar", members)
    with pytest.raises(DataError, match=rf"1 shard cannot be used:\n  \S+train-1\.tar: {says}"):
        _look(folder)


def test_of_many_bad_files_twenty_are_named(caplog: pytest.LogCaptureFixture) -> None:
    bad = {Path(f"{number}.tar"): "it is cut off" for number in range(23)}
    with pytest.raises(DataError) as caught:
        refuse_or_warn(bad, "raise", "shard")
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["23 shards cannot be used:", "  0.tar: it is cut off"]
    assert lines[20:] == [
        "  19.tar: it is cut off",
        "  and 3 more",
        "Mend or remove them, or go on without them: source.on_bad_file=skip",
    ]
    refuse_or_warn({}, "raise", "shard")
    assert not caplog.messages
    refuse_or_warn(bad, "skip", "shard")
    assert caplog.messages == ["23 bad shards left out, the first is 0.tar: it is cut off"]


def test_other_files_are_no_shards(folder: Path) -> None:
    (folder / "train-1.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DataError, match=r"train-1\.tar: it is no tar archive, or a compressed one"):
        _look(folder)


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"shards": "{folder}/train-{{0..9}}.tar"}, DataError, r"6 of 10 files .*: \S+train-4.tar is the first"),
        ({"shards": "{folder}/train-{{0..3.tar"}, ConfigError, "a brace is not closed"),
        ({"shards": "{folder}/train-{{{{0..3}},x}}.tar"}, ConfigError, "a brace is not closed, or within another"),
        ({"shards": "{folder}/train-{{0..999999999}}.tar"}, ConfigError, "names more than 100,000 shards"),
        ({"shards": "{folder}/{{0..999}}-{{0..999}}-{{0..999}}.tar"}, ConfigError, "names more than 100,000 shards"),
        ({"shards": "{folder}/train-{{0,0}}.tar"}, ConfigError, r"names a file twice: \S+train-0.tar"),
        ({"val_shards": "{folder}/train-0.tar"}, ConfigError, "is in source.shards and in source.val_shards"),
        ({"classes": 1}, ConfigError, "source.classes must be at least 2"),
        ({"workers": -1}, ConfigError, "source.workers must be a whole number of at least 0, not -1"),
        ({"on_bad_file": "stop"}, ConfigError, "source.on_bad_file must be raise or skip"),
        ({"shard": "x"}, ConfigError, "source has no shard; it has classes, "),
    ],
)  # fmt: skip
def test_bad_values(folder: Path, more: dict[str, Any], error: type[Exception], says: str) -> None:
    given = {
        key: value.format(folder=folder) if isinstance(value, str) else value for key, value in more.items()
    }
    with pytest.raises(error, match=says):
        _look(folder, **given)


def test_a_package_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset.filters", None)
    monkeypatch.delitem(sys.modules, "dxc.scaling.shards", raising=False)
    monkeypatch.delattr("dxc.scaling.shards", raising=False)
    with pytest.raises(ConfigError, match=r"needs a package that is not here, webdataset.*: pip install"):
        _look(folder)


def test_a_request_of_many_shards_can_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their paths take more bytes than a request may have."""
    monkeypatch.setattr("dxc.scaling.shards._fault", lambda *_: "")
    deep = folder.joinpath(*["d" * 250] * 12)
    count = MAX_JSON_BYTES // len(str(deep)) + 1
    deep.mkdir(parents=True)
    for number in range(count):
        (deep / f"{number}.tar").touch()
    about = _look(folder, shards=f"{deep}/{{0..{count - 1}}}.tar")
    written(folder / "run", about=about)
    assert checked(Request, load_json(folder / "run" / REQUEST)).about == about
    assert about["shards"] == len(_listed(about, "train")) == count


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_left_out_is_counted_once(
    folder: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """However many epochs and validation passes meet it."""
    for name, first in (("train-0", 0), ("val-0", 24)):
        members = _members(range(first, first + EACH))
        members[4] = (members[4][0], b"no image")  # the third
        _write(folder / f"{name}.tar", members)
    about = _look(folder, workers=workers, on_bad_file="skip")
    (folder / "val-1.tar").unlink()
    rank = _of_rank(about)
    _numbers(islice(rank.train(23), 3))
    for _ in range(3):
        assert len(_numbers(rank.validation(4))) == EACH - 1
    assert rank.left_out == {
        (f"{folder}/train-0.tar", "0002"), (f"{folder}/val-0.tar", "0026"), (f"{folder}/val-1.tar", ""),
    }  # fmt: skip
    if not workers:  # a loader process has a log of its own
        assert len([each for each in caplog.messages if each.startswith("left out: ")]) == 3


@pytest.mark.slow
def test_two_ranks_train_on_shards(folder: Path) -> None:
    members = _members(range(24, 30))
    members[4] = (members[4][0], b"no image")
    _write(folder / "val-0.tar", members)
    about = {**_look(folder, workers=1, on_bad_file="skip"), "validation_images": 0}
    (folder / "val-1.tar").unlink()  # both ranks meet it
    written(folder / "run", about=about, model={
        "_target_": "dxc.models.resnet.TinyResNet", "in_channels": 3, "num_classes": CLASSES, "width": 8,
    })  # fmt: skip
    launch_here(folder / "run")
    result = result_of(folder / "run")
    assert result["steps"] > 0 and 0 <= result["accuracy"] <= 1
    assert result["loader_s"] > 0
    assert (result["skipped_images"], result["skipped_shards"]) == (1, 1)


def test_the_digest_follows_the_shards(folder: Path) -> None:
    found = [_look(folder)["digest"]]
    assert _look(folder)["digest"] == found[0]
    _write(folder / "train-3.tar", _members(range(18, 200)))
    found.append(_look(folder)["digest"])
    members = [(name, b"3" if name == "0001.cls" else content) for name, content in _members(range(EACH))]
    before = (folder / "train-0.tar").stat()
    _write(folder / "train-0.tar", members)
    os.utime(folder / "train-0.tar", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert (folder / "train-0.tar").stat().st_size == before.st_size
    found.append(_look(folder)["digest"])
    copy = folder / "copy"
    copy.mkdir()
    for path in folder.glob("*.tar"):
        shutil.copy2(path, copy)
    found.append(_look(copy)["digest"])
    assert len(set(found)) == 4
