"""YAML and JSON that others wrote: what is read is plain, what is odd is refused at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dxc.errors import HardwareError
from dxc.hardware.predict.kernels import check_rules
from dxc.untrusted import below, is_hash, is_run_id, load_json, load_yaml
from tests.analysis.test_hostile_store import BOMB
from tests.analysis.test_reproduce import _config


def _yaml(tmp_path: Path, text: str) -> object:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_yaml(path)


def test_identities() -> None:
    assert is_hash("0123456789ab") and is_run_id("0123456789abcdef" * 2)
    for odd in ("", "/etc", "..", "0123456789a", "0123456789ab\n", "0123456789AB", "０123456789ab", None, 12):
        assert not is_hash(odd) and not is_run_id(odd)
    assert below(Path("a"), "0123456789ab") == Path("a/0123456789ab")
    for odd in ("/etc", "../x", "", ".", "b/0123456789ab"):
        with pytest.raises(ValueError, match="is not an id of a trial or run"):
            below(Path("a"), odd)


def test_yaml_is_read_as_omegaconf_reads_it(tmp_path: Path) -> None:
    config = _config("optimizer.lr=1e-5", "source=chips", "source.root='1e-3'", "seed=7")
    path = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(config), path)
    assert load_yaml(path) == OmegaConf.to_container(OmegaConf.load(path)) == config


def test_nothing_in_it_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DXC_CANARY", "canary")
    text = "a: ${oc.env:DXC_CANARY}\nb: 2001-01-01\nc: 1e-3\n<<: {d: 1}\n"
    assert _yaml(tmp_path, text) == {
        "a": "${oc.env:DXC_CANARY}",
        "b": "2001-01-01",
        "c": 0.001,
        "<<": {"d": 1},
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "line 1 has an alias or anchor"),
        ("a: !!python/object/apply:os.system [ls]", "has the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !x 1", "has the tag !x"),
        ("[" * 50_000, "deeper than 32 levels"),
        ("a: " + "x" * 300_000, "more than 200,000 bytes"),
        ("a: [", "did not find expected node content"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: " + "1" * 5000, "4300 digits"),
    ],
)  # fmt: skip
def test_odd_yaml(tmp_path: Path, text: str, why: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match=why):
        _yaml(tmp_path, text)
    assert time.perf_counter() - started < 2


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(FileNotFoundError):
        load_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "deeper than 32 levels"),
        ('{"a":' * 40 + "1" + "}" * 40, "deeper than 32 levels"),
        ("[" + "1" * 5000 + "]", "4300 digits"),
        ('"' + '\\"' * 200_000, "Unterminated string"),
        (" " * 2_000_001, "more than 2,000,000"),
    ],
)
def test_odd_json(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "rules.json").write_text(text)
    for source in (text, tmp_path / "rules.json"):
        started = time.perf_counter()
        with pytest.raises(ValueError, match=why):
            load_json(source)
        assert time.perf_counter() - started < 2
    with pytest.raises(HardwareError, match=f"is not a file of fusion rules: .*{why}"):
        check_rules(tmp_path / "rules.json")


def test_json_is_json() -> None:
    assert load_json('{"a": ["[[[[]", {"b": "\\"[{"}], "c": 1e3}') == {
        "a": ["[[[[]", {"b": '"[{'}],
        "c": 1000.0,
    }
    deep = '{"a":' * 32 + "1" + "}" * 32
    assert load_json(deep)
