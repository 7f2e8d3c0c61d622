"""An exported file as a torch module, whose answers ONNX Runtime computes.

So a task judges the file itself: in the same batches and with the same metrics as the network that it was made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dxc.errors import ExportError, first_line
from dxc.models.registry import DEFAULT_OUTPUTS
from dxc.models.sppnet import Detection


class OnnxRuntimeModule(nn.Module):
    """Image (B, C, H, W) -> what the network in the file answers, on the CPU.

    Args:
        path: of the .onnx, from dxc.deploy.export or dxc.compress.quantise.

    Raises:
        ExportError: ONNX Runtime cannot run the file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has an error class for each kind of fault
            raise ExportError(f"{path}: ONNX Runtime cannot run it: {first_line(error)}") from error
        self.output_names = tuple(each.name for each in self._session.get_outputs())

    def forward(self, image: Tensor) -> Any:
        fed = {"image": image.float().contiguous().cpu().numpy()}
        answers = [torch.from_numpy(each) for each in self._session.run(None, fed)]
        return answers[0] if self.output_names == DEFAULT_OUTPUTS else Detection(*answers)
