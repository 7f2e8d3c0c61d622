"""dxc: designs convolutional networks for small devices and proves what they cost."""

import os

# ONNX Runtime 1.29 and later reports its use to its maker (github.com/microsoft/onnxruntime/pull/27379).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
