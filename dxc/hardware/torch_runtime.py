"""Runs an exported file with torch: as it is on a processor, and on a GPU captured once as a CUDA graph."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

WARM_UP_RUNS = 3
"""Runs before a capture, so that cuDNN chooses its algorithms and libraries load before it
(pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs")."""


@contextlib.contextmanager
def arithmetic(device: str) -> Iterator[None]:
    """On a GPU work as ONNX Runtime's CUDA provider does by default, so that the two runtimes can be compared.

    cuDNN times its algorithms for each shape (cudnn_conv_algo_search=EXHAUSTIVE), and TF32 is allowed in convolutions,
    as torch allows it anyway, and in matrix products (use_tf32=1). See
    onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html

    device: cuda or cpu, where nothing changes.
    """
    if device != "cuda":
        yield
        return
    benchmark = torch.backends.cudnn.benchmark
    change: Callable[[str], None] = torch.set_float32_matmul_precision
    try:
        precision, wanted = torch.get_float32_matmul_precision(), "high"
    except RuntimeError:  # somebody used the newer switch, whose values the older one refuses to read
        precision, wanted = torch.backends.cuda.matmul.fp32_precision, "tf32"
        change = functools.partial(setattr, torch.backends.cuda.matmul, "fp32_precision")
    torch.backends.cudnn.benchmark = True
    change(wanted)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        change(precision)


def uses_tf32() -> bool:
    """Whether this GPU has TF32: from Ampere on (compute capability 8)."""
    return torch.cuda.get_device_capability()[0] >= 8


def outputs_of(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a network returned, as a tuple."""
    return answer if isinstance(answer, tuple) else (answer,)


def warm_up(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Run a network in the current stream before it is captured. What the search for algorithms needed is given back.

    Args:
        module: the network, on the GPU.
        inputs: on the GPU.
    """
    for _ in range(WARM_UP_RUNS):
        module(*inputs)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def capture(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """Capture one run in the current stream as a CUDA graph, after warm_up(). Returns the graph and its outputs.

    Each replay reads `inputs` and fills the outputs, so both have to stay.

    Args:
        module: the network, on the GPU.
        inputs: on the GPU.

    Raises:
        RuntimeError: the current stream is the default one, or an operator copies to or waits for the host. The process
            should not go on: what it had begun on the GPU is undefined.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        outputs = outputs_of(module(*inputs))
    return graph, outputs
