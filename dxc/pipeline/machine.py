"""Fits a plan to the machine that trains it."""

from __future__ import annotations

from dxc.config.plan import Plan
from dxc.hardware.spec import device_name
from dxc.training.build import fit_to_machine
from dxc.training.precision import choose_precision


def fitted(plan: Plan, *, gpu: int | None = None) -> Plan:
    """The plan with what `auto` means here: its accelerator, its precision, its GPU.

    Identities and params are those of the plan as requested.

    Args:
        plan: as requested.
        gpu: number of the GPU for a plan that asks for one device; None: any.
    """
    plan = fit_to_machine(plan, gpu=gpu)
    return choose_precision(plan, device_name(plan.trainer.accelerator))
