"""Parts of a printed command that several commands share."""

from __future__ import annotations

from hydra import compose, initialize_config_dir

from dxc.config.compose import PROJECT_ROOT, resolved
from dxc.config.overrides import DEFAULT_STORE, store_override


def test_the_default_store_is_that_of_the_configuration() -> None:
    with initialize_config_dir(str(PROJECT_ROOT / "conf"), version_base="1.3"):
        assert resolved(compose("train"))["tracking"]["uri"] == DEFAULT_STORE


def test_a_command_names_a_store_that_is_not_the_default() -> None:
    assert store_override(DEFAULT_STORE) == []
    assert store_override("http://127.0.0.1:5000") == ["tracking.uri='http://127.0.0.1:5000'"]
    assert store_override("postgresql://me:secret@host/runs") == []  # the command would show it
