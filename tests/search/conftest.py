from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ChipMaker
from tests.search.searches import Searching


@pytest.fixture
def searching(make_chips: ChipMaker, tmp_path: Path, store_file: Path) -> Searching:
    return Searching(make_chips(regions=("NE",), per_class=8), tmp_path)
