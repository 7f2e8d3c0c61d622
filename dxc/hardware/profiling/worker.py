"""The process that Nsight Systems records: `python -m dxc.hardware.profiling.worker model.onnx 1 2 4`.

For each batch size it executes the network once outside of any range, then once in an NVTX range 'batch N'. Images are
copied to the GPU and scores back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dxc.hardware.graph import OnnxModule
from dxc.hardware.profiling.cupti import RANGE
from dxc.hardware.profiling.torch_profile import execute, images
from dxc.hardware.torch_runtime import arithmetic


def main(onnx: Path, batches: list[int]) -> None:
    module = OnnxModule(onnx).eval().cuda()
    with torch.inference_mode(), arithmetic("cuda"):
        for batch in batches:
            image = images(onnx, batch)
            execute(module, image, "cuda")
            torch.cuda.nvtx.range_push(f"{RANGE}{batch}")
            execute(module, image, "cuda")
            torch.cuda.nvtx.range_pop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(batch) for batch in sys.argv[2:]])
