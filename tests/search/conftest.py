from __future__ import annotations

from pathlib import Path

import pytest

from dxc.pipeline import chain
from tests.conftest import ChipMaker
from tests.search.searches import Searching


@pytest.fixture
def with_figures() -> None:
    """For a test that looks at figures of trials. Others do without: to draw them takes half of a trial's time."""


@pytest.fixture
def searching(
    make_chips: ChipMaker,
    tmp_path: Path,
    store_file: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Searching:
    if "with_figures" not in request.fixturenames:
        monkeypatch.setattr(chain, "draw_run", lambda *_, **__: [])
    return Searching(make_chips(regions=("NE",), per_class=8), tmp_path)
