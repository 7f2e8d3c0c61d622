"""An exported file as operators that can be scheduled, at one batch size, in one precision, on one device.

What a schedule moves is an operator: a node with the nodes that go with it. These are views of its result (Flatten,
Reshape), which cost nothing, and what is done to its result alone (Relu, Sigmoid, a Gather with fixed positions), which
would only wait for it. Nodes whose result does not depend on the values of the image (sizes, constants) are computed
once and are no part of an operator.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dxc.errors import HardwareError, require_one_of
from dxc.hardware.graph import Node, OnnxModule
from dxc.hardware.onnx_file import image_shape, inputs, load_onnx
from dxc.hardware.schedule.dag import Dag, Group, Stage

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""fp32 computes without TF32."""
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 5e-3}
"""Largest error of an output that two executions of one file may have, relative to its largest value."""

VIEWS = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
FOLLOWERS = {
    "BatchNormalization", "Cast", "Clip", "Gather", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid",
    "Slice", "Softmax", "Add", "Div", "Mul", "Sub",
}  # fmt: skip
"""They join the operator before them if they alone read its result, and read no other one."""


@dataclass(frozen=True)
class Operator:
    """What is scheduled as one.

    Attributes:
        name: the kinds of its nodes, such as 'Conv+Relu'.
        nodes: in order.
        inputs: values of other operators that it reads, or the image.
        does: all that its time depends on: nodes, attributes, shapes of what they read.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    does: str

    def run(self, values: dict[str, Any]) -> None:
        """Compute it.

        Args:
            values: constants and what has been computed, by name; the results are added.
        """
        for node in self.nodes:
            _run(node, values)


@dataclass
class Program:
    """An exported file, ready to be scheduled.

    Attributes:
        source: name of the file.
        batch: images at once.
        precision: a key of PRECISIONS.
        device: where it runs.
        image: a batch of random images (B, C, H, W) on the device.
        operators: in the order of the file.
        dag: what each operator needs.
        constants: weights and fixed values by name, on the device or where operators read them.
        values: of all operators for `image`.
        outputs: names of the file's outputs.
    """

    source: str
    batch: int
    precision: str
    device: torch.device
    image: Tensor
    operators: tuple[Operator, ...]
    dag: Dag
    constants: dict[str, Any]
    values: dict[str, Any]
    image_name: str
    outputs: tuple[str, ...]

    @property
    def bytes_once(self) -> int:
        """Bytes that have to be moved at least: images, weights and outputs, each once."""
        weights = [each for each in self.constants.values() if isinstance(each, Tensor) and each.ndim]
        moved = [self.image, *weights, *(self.values[name] for name in self.outputs)]
        return sum(each.numel() * each.element_size() for each in moved)

    def start(self, image: Tensor) -> dict[str, Any]:
        """The values before the first operator."""
        return {**self.constants, self.image_name: image}

    def results(self, values: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The outputs among the values."""
        return tuple(values[name] for name in self.outputs)

    def run_group(self, group: Group, values: dict[str, Any]) -> None:
        """Compute the operators of a group."""
        for number in group:
            self.operators[number].run(values)

    def run_in_order(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs, computed operator by operator in the order of the file."""
        values = self.start(image)
        self.run_group(tuple(range(len(self.operators))), values)
        return self.results(values)

    def fresh_image(self, seed: int) -> Tensor:
        """Other random images of the same shape."""
        images = torch.empty_like(self.image)  # in channels_last too
        return images.copy_(_images(tuple(self.image.shape), seed))

    def does(self, stage: Stage) -> str:
        """All that the time of a stage depends on; equal for stages that do the same work.

        Args:
            stage: groups of operators.
        """
        return " || ".join(sorted(self._group_does(group) for group in stage))

    def _group_does(self, group: Group) -> str:
        place = {
            name: i
            for i, each in enumerate(group)
            for node in self.operators[each].nodes
            for name in node.outputs
        }
        return " ; ".join(
            f"{self.operators[each].does} <- {[place.get(name, 'in') for name in self.operators[each].inputs]}"
            for each in group
        )


class InOrder(nn.Module):
    """A program as a module that runs its operators in the order of the file."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.program.run_in_order(image)


def load_program(
    onnx: Path, *, batch: int = 1, precision: str = "fp32", device: str | torch.device = "cpu"
) -> Program:
    """Read a file and run it once.

    On a GPU, half precision is computed in channels_last, as its units want it.

    Args:
        onnx: the file.
        batch: images at once.
        precision: fp32 (without TF32), bf16 or fp16: of weights, images and what is computed.
        device: where it is to run.

    Raises:
        ConfigError: an unknown precision.
        HardwareError: the file cannot be read, has several inputs or an open size, or cannot be run with torch.
    """
    require_one_of("precision", precision, PRECISIONS)
    model = load_onnx(onnx)
    if len(inputs(model, str(onnx))) > 1:
        raise HardwareError(f"{onnx} has several inputs; only a network of images can be scheduled")
    shape = (batch, *image_shape(model, str(onnx)))
    device, dtype = torch.device(device), PRECISIONS[precision]
    module = OnnxModule(onnx).eval().to(device, dtype)
    image = _images(shape, seed=0).to(device, dtype)
    if device.type == "cuda" and dtype != torch.float32 and image.ndim == 4:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
        image = image.to(memory_format=torch.channels_last)
    with torch.no_grad():
        try:
            return _program(module, image, str(onnx), precision)
        except HardwareError:
            raise
        except Exception as error:  # torch may raise anything: too little memory, mixed precisions, ...
            raise HardwareError(
                f"{onnx} cannot be run with torch at batch {batch} in {precision}: {type(error).__name__}: {error}"
            ) from error


def _images(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _run(node: Node, values: dict[str, Any]) -> None:
    result = node.run(node.attributes, *(values[name] if name else None for name in node.inputs))
    results = result if isinstance(result, list | tuple) else [result]
    values |= dict(zip(node.outputs, results, strict=False))


def _program(module: OnnxModule, image: Tensor, source: str, precision: str) -> Program:
    (image_name,), outputs = module.names
    constants: dict[str, Any] = module.constants()
    values = {**constants, image_name: image}
    fixed = set(constants)
    moving: list[Node] = []
    for node in _needed(module.nodes(), outputs):
        if node.op == "Gather" and node.inputs[1] in fixed and node.inputs[0] not in fixed:
            node = _beside_the_image(node, values, fixed, image.device)
        _run(node, values)
        if node.op == "Shape" or fixed.issuperset(filter(None, node.inputs)):
            fixed.update(node.outputs)
        else:
            moving.append(node)
    if fixed & set(outputs):
        raise HardwareError(
            f"{source}: an output does not depend on the image, so there is nothing to schedule"
        )
    operators = tuple(_operator(nodes, values, fixed) for nodes in _joined(moving, fixed, outputs))
    maker = {name: i for i, each in enumerate(operators) for node in each.nodes for name in node.outputs}
    dag = Dag(
        tuple(
            sum(1 << each for each in {maker[name] for name in operator.inputs if name in maker})
            for operator in operators
        ),
        results=sum(1 << each for each in {maker[name] for name in outputs}),
    )
    read = {name for node in moving for name in node.inputs}
    kept = {name: values[name] for name in fixed if name in read}
    return Program(
        source, image.shape[0], precision, image.device, image, operators, dag, kept, values, image_name, tuple(outputs)
    )  # fmt: skip


def _needed(nodes: list[Node], outputs: list[str]) -> list[Node]:
    """The nodes on which the outputs depend."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _beside_the_image(node: Node, values: dict[str, Any], fixed: set[str], device: torch.device) -> Node:
    """A Gather whose positions lie on the device. A copy from the host would wait, which no CUDA graph may."""
    positions = values[node.inputs[1]]
    if not isinstance(positions, Tensor) or positions.ndim == 0:
        return node
    name = f"{node.inputs[1]} on the device"
    values[name] = positions.to(device)
    fixed.add(name)
    return node._replace(inputs=[node.inputs[0], name])


def _joined(nodes: list[Node], fixed: set[str], outputs: list[str]) -> list[list[Node]]:
    """The nodes of each operator, in an order of execution."""
    readers = Counter(name for node in nodes for name in {*node.inputs} - fixed)
    readers.update(outputs)
    operators: list[list[Node]] = []
    of: dict[str, int] = {}
    for node in nodes:
        read = {*filter(None, node.inputs)} - fixed
        owner = of.get(next(iter(read))) if len(read) == 1 else None
        only_reader = all(readers[name] == 1 for name in read)
        if owner is not None and (node.op in VIEWS or (node.op in FOLLOWERS and only_reader)):
            operators[owner].append(node)
        else:
            owner = len(operators)
            operators.append([node])
        of |= dict.fromkeys(node.outputs, owner)
    return operators


def _operator(nodes: list[Node], values: Mapping[str, Any], fixed: set[str]) -> Operator:
    own = {name for node in nodes for name in node.outputs}
    read = [name for node in nodes for name in node.inputs if name and name not in own]
    does = [
        (
            node.op,
            sorted((name, repr(value)) for name, value in node.attributes.items()),
            [tuple(values[name].shape) if name else None for name in node.inputs],
        )
        for node in nodes
    ]
    return Operator(
        "+".join(node.op for node in nodes),
        tuple(nodes),
        tuple(dict.fromkeys(name for name in read if name not in fixed)),
        repr(does),
    )


@contextlib.contextmanager
def exact_numbers(precision: str) -> Iterator[None]:
    """Compute without TF32, and let cuDNN choose its algorithms by timing, the same ones for all schedules.

    Args:
        precision: a key of PRECISIONS.
    """
    from torch.backends import cuda, cudnn

    require_one_of("precision", precision, PRECISIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 announces another name for these
        before = cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = False, False, True
        try:
            yield
        finally:
            cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
