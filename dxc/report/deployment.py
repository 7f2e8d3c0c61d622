"""The table of a deployment: in the terminal, and as a CSV file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dxc.errors import AnalysisError
from dxc.files import write_atomically
from dxc.hardware.measure.energy.smartpower2 import is_simulated
from dxc.metrics import METRICS, label_of, why_invalid
from dxc.report.tables import comma_separated
from dxc.report.terminal import Column, new_console, print_table, print_text

if TYPE_CHECKING:
    from dxc.deployment.deployment import Deployment, Proof

SHOWN = (
    "device_accuracy", "measured_latency_ms", "measured_latency_p95_ms", "peak_memory_mb", "energy_mj", "net_energy_mj",
    "max_power_w", "fom",
)  # fmt: skip
"""Metrics of the table, where some network has them."""
MISSING = "-"


def print_deployment(result: Deployment) -> None:
    """Print what each network gave on the device, and write the table.

    Raises:
        AnalysisError: the table cannot be written.
    """
    import pandas as pd

    names = [name for name in SHOWN if any(_cell(name, each) != MISSING for each in result.proofs)]
    columns = [
        Column("design", [each.name for each in result.proofs], words=True),
        Column("trained accuracy", [_shown("accuracy", each.trained) for each in result.proofs]),
        *(
            Column(
                label_of(name, METRICS[name]),
                [_cell(name, each) for each in result.proofs],
            )
            for name in names
        ),
        Column("this time", [each.state for each in result.proofs], words=True),
    ]
    console = new_console()
    print_table(console, columns, title=f"{result.title} on {result.device}")
    for line in _origin(result):
        print_text(console, line)
    for each in result.proofs:
        for note in each.notes:
            print_text(console, f"note: {each.name}: {note}")
    for note in (*result.notes, *(f"judged by {each}" for each in result.images)):
        print_text(console, f"note: {note}")
    frame = pd.DataFrame(
        {
            "run": [each.run_id for each in result.proofs],
            "design": [each.name for each in result.proofs],
            "device": result.device,
            "meter": result.meter,
            "accuracy": [each.trained for each in result.proofs],
            **{name: [each.metrics.get(name) for each in result.proofs] for name in names},
            "notes": ["; ".join(each.notes) for each in result.proofs],
        }
    )
    path = result.folder / "deployed.csv"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, comma_separated(frame))
    except OSError as error:
        raise AnalysisError(f"out: {path} cannot be written: {error.strerror or error}") from error
    print_text(console, f"sent to the device: {result.sent_bytes / 1e6:.2f} MB")
    print_text(console, f"table: {path}")


def _origin(result: Deployment) -> list[str]:
    """What the figures are of, and which of them are of no real device or meter."""
    lines = []
    if result.emulated:
        name = result.device.partition(";")[0].removeprefix("emulated, ")
        lines.append(f"emulated: {name} is no real device, and its times say nothing of one")
    if result.meter:
        lines.append(f"metered by: {result.meter}")
    if is_simulated(result.meter):
        lines.append("simulated: energy and power are of a simulated meter, and of no device")
    return lines


def _cell(name: str, proof: Proof) -> str:
    """A figure of a network; 'invalid' where it was measured and does not count."""
    if any(why_invalid(proof.verdicts.get(tag)) for tag in METRICS[name].verdicts):
        return "invalid"
    return _shown(name, proof.metrics.get(name))


def _shown(name: str, value: Any) -> str:
    """A value as its row writes it."""
    return MISSING if value is None else format(value, METRICS[name].table_format)
