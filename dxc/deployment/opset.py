"""Which version of ONNX Runtime a file needs, by its operator set and its format (IR version)."""

from __future__ import annotations

from typing import Any

# From onnxruntime.ai/docs/reference/compatibility.html: the version with which each came.
OPSETS = {
    15: (1, 10),
    16: (1, 11),
    17: (1, 12),
    18: (1, 14),
    19: (1, 15),
    20: (1, 17),
    21: (1, 18),
    22: (1, 21),
    23: (1, 23),
}
IR_VERSIONS = {8: (1, 10), 9: (1, 15), 10: (1, 18), 11: (1, 22)}


def needed_runtime(model: Any) -> tuple[int, int]:
    """The oldest version of ONNX Runtime that is made for a file, such as (1, 12).

    A newer set than those that are known needs at least the newest of them.

    Args:
        model: onnx.ModelProto.
    """
    opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    return max(_first(OPSETS, opset), _first(IR_VERSIONS, model.ir_version))


def _first(table: dict[int, tuple[int, int]], number: int) -> tuple[int, int]:
    """The version for a number; of numbers between two rows that of the later one."""
    later = [version for known, version in table.items() if known >= number]
    return min(later) if later else max(table.values())
