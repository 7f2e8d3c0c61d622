"""Files are whole, whoever else writes them, and on the disk before they get their names."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dxc.files import sync_to_disk, whole_file, whole_folder, write_atomically


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old and longer")
    write_atomically(path, "größer")
    assert path.read_bytes() == "größer".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]  # no draft stays


def test_threads_that_write_one_file_do_not_collide(tmp_path: Path) -> None:
    path, together = tmp_path / "state.json", threading.Barrier(8)
    contents = [bytes([number]) * 300_000 for number in range(8)]

    def write(content: bytes) -> None:
        for _ in range(20):
            together.wait(timeout=10)
            write_atomically(path, content, sync=False)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))
    assert [each.name for each in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("sync", [True, False])
def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        content = target.read_text() if target.is_file() else "folder"
        events.append(f"sync {content}")
        fsync(descriptor)

    def seen_replace(*paths: object) -> None:
        events.append("rename")
        replace(*paths)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    write_atomically(tmp_path / "a.txt", "whole", sync=sync)
    assert events == (["sync whole", "rename", "sync folder"] if sync else ["rename"])
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_full_disk_leaves_the_old_file_and_no_draft(small_disk: Path) -> None:
    path = small_disk / "state.json"
    write_atomically(path, "old")
    with pytest.raises(OSError) as caught:
        write_atomically(path, bytes(2_000_000))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert list(small_disk.iterdir()) == [path]


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127], ids=["ascii", "two bytes a letter"])
def test_the_longest_names_have_drafts_too(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, "x")
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_what_cannot_be_synced_says_so(tmp_path: Path) -> None:
    sync_to_disk(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_to_disk(tmp_path / "none")


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with whole_folder(folder) as draft:
        (draft / "a").write_text("1")
        assert not folder.exists()
    assert (folder / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "made") as draft:
        (draft / "a").write_text("1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_only_the_holder_of_the_lock_removes_earlier_drafts(tmp_path: Path) -> None:
    """Drafts of other folders stay, also where their names begin alike."""
    for name in (".made.1", ".made2.1", ".other.1"):
        (tmp_path / name).mkdir()
    with whole_folder(tmp_path / "made"):
        assert (tmp_path / ".made.1").is_dir()
    (tmp_path / "made").rmdir()
    with whole_folder(tmp_path / "made", locked=True):
        assert not (tmp_path / ".made.1").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".made2.1", ".other.1", "made"]


@pytest.mark.parametrize("name", ["a [1].gpkg", f"{'ö' * 125}.gpkg"])
def test_a_library_writes_a_file_whole_or_not_at_all(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with whole_file(path) as draft:
        draft.write_text("new")
        assert not path.exists() and draft.parent == tmp_path and draft.suffix == ".gpkg"
    assert path.read_text() == "new"
    with pytest.raises(ValueError, match="broke off"), whole_file(path) as draft:
        draft.write_text("half")
        if len(name) < 100:
            Path(f"{draft}-journal").write_text("of a database")
        raise ValueError("broke off")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
