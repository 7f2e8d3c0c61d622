"""A study on this machine under a simulated meter: the energy that is reported holds the true one, and the tables come
out of two commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from dxc.report.deployment import print_deployment
from tests.deployment import metered


@pytest.mark.slow
def test_energy_holds_the_truth_and_the_tables_show_it(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metered.allow_short_windows(monkeypatch)
    with metered.meter(study / "cache" / "device" / "events.jsonl") as serving:
        result = metered.deployed_with(serving, study)
    assert [each.state for each in result.proofs] == ["measured"] * 3
    assert result.meter == metered.METER and not result.emulated
    metered.check_energy(study)
    metered.check_tables(study, result.device.partition(";")[0])
    print_deployment(result)
    assert "simulated: energy and power are of a simulated meter" in capsys.readouterr().out
