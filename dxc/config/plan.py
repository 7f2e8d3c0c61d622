"""The plan of one design: everything that a run needs to know, checked once, where a command begins.

Plan.of() makes it of a composed configuration. Rooms are given the plan, or the part of it that they need. They do not
read a configuration by its keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from omegaconf import DictConfig
from pydantic import Field, model_validator

from dxc.config.build import build, check_names
from dxc.config.checked import (
    Flag,
    FolderName,
    LimitOrNull,
    Names,
    Natural,
    Part,
    Positive,
    Precision,
    Text,
    checked,
    is_list_of_texts,
    must_be,
)
from dxc.config.compose import image_size, resolved
from dxc.config.hardware import Hardware
from dxc.config.identity import design_hash, trial_hash
from dxc.config.names import data_name, describe
from dxc.errors import is_number
from dxc.models.registry import Network, model_name, network

Profiler = Literal["auto", "none", "torch", "nsight"]


class Component(Part, extra="allow"):
    """A section that names a class. Its other keys are arguments of the class, whose constructor checks them.

    The fields are the arguments that other rooms read too.
    """

    kind: ClassVar[str]
    """What the section may build; see dxc.config.build.KINDS."""
    target: Text = Field(alias="_target_")

    @model_validator(mode="before")
    @classmethod
    def _names(cls, section: Any) -> Any:
        check_names(section, cls.kind, cls.kind)
        return section

    def argument(self, name: str) -> Any:
        """An argument that only some of the classes have; None where it is not given."""
        return (self.model_extra or {}).get(name)

    def build(self, **arguments: Any) -> Any:
        """Build the object, with more arguments; see dxc.config.build.build."""
        return build(self.values(), self.kind, **arguments)


class Model(Component):
    """A network and its knobs."""

    kind = "model"
    in_channels: Positive

    @property
    def entry(self) -> Network:
        """The network in the registry. Raises ConfigError where it has no entry."""
        return network(self.values())

    @property
    def name(self) -> str:
        """Such as 'resnet18'."""
        return model_name(self.values())


class TaskSection(Component):
    """What the network is trained for."""

    kind = "task"


class Source(Component):
    """Where chips come from."""

    kind = "source"


class Data(Component):
    """How chips become batches."""

    kind = "data"
    channels: Annotated[list[str], must_be(is_list_of_texts, "a list of names, such as [dem,red]")]
    """By name, in the order in which the network gets them."""
    classes: Names
    """By label."""
    batch_size: Positive
    size: Annotated[
        int | str, must_be(lambda size: isinstance(size, int) or size == "any", "an edge in pixels, or any")
    ]
    """Edge of a chip in pixels, or any."""
    boxes: Flag
    fold_seed: Natural = 0

    @property
    def name(self) -> str:
        """'7ch' for seven channels, 'cifar10'."""
        return data_name(self.values())

    @property
    def image_size(self) -> int:
        """Edge in pixels of the image that costs are computed for."""
        return image_size(self.size)


class Optimizer(Component):
    """torch's optimizer, without the parameters."""

    kind = "optimizer"


class Scheduler(Component):
    """torch's schedule of the learning rate, without the optimizer."""

    kind = "scheduler"


class Trainer(Component):
    """Epochs, precision, devices."""

    kind = "trainer"
    max_epochs: Natural
    """0 only evaluates the weights of base."""
    accelerator: Text
    precision: Precision
    channels_last: Flag
    engine: Literal["auto", "eager", "graph"] = "auto"
    """What trains. auto: graph on one CUDA device, where the plan allows it."""
    devices: int | str | list[int] = 1


class Compress(Part):
    """How a trained network is made smaller. Without a fraction it is not pruned."""

    fraction: Annotated[
        int | float,
        must_be(
            lambda value: is_number(value) and 0 <= value < 1, "a fraction of at least 0 and less than 1"
        ),
    ]
    """Of the channels of each convolution that go."""
    align: Positive
    steps: Positive = 1
    """In how many the fraction is reached, with fine-tuning after each."""
    finetune_epochs: Natural
    finetune_lr: LimitOrNull
    """The learning rate that fine-tuning begins with; None: that of training."""
    quantise: Literal["none", "dynamic", "static"]
    calibration_images: Positive
    calibration_seed: Natural

    @property
    def prunes(self) -> bool:
        """Whether channels are removed."""
        return self.fraction > 0

    @property
    def quantises(self) -> bool:
        """Whether the exported network computes in 8 bits."""
        return self.quantise != "none"


class Tracking(Part):
    """Where the run is recorded."""

    uri: Text
    artifacts: Names
    """More places that files of runs may lie in."""
    checkpoints: Flag


class Plan(Part):
    """One design, and how it is trained, costed and recorded. conf/base.yaml explains each key."""

    model: Model
    task: TaskSection
    source: Source
    data: Data
    optimizer: Optimizer
    scheduler: Scheduler | None
    trainer: Trainer
    compress: Compress
    hardware: Hardware
    boxes: Flag
    base: Text | None = None
    """A file with the weights that training begins with."""
    base_digest: Text | None = None
    """Of its content. It follows from base, and is part of the identity."""
    score: Text
    study: FolderName
    seed: Natural
    profile: Profiler
    preview: Flag = False
    """Of train.py: draw a sheet of chips and stop."""
    any_size_file: Flag
    fold_files: Flag = False
    """Whether the network of every fold is exported, not only that of the best one."""
    progress: Flag
    cache_dir: Text
    again: Flag
    kept_gb: Annotated[
        int | float | None,
        must_be(
            lambda limit: limit is None or (is_number(limit) and limit >= 0),
            "a number of gigabytes from 0, or null for no limit",
        ),
    ]
    tracking: Tracking

    @model_validator(mode="after")
    def _base_is_there(self) -> Self:
        if self.base is not None and self.base_digest is None:
            raise ValueError(f"base={self.base}: there is no such file, or it cannot be read")
        if self.base is None and self.trainer.max_epochs == 0:
            raise ValueError(
                "trainer.max_epochs must be a whole number of at least 1, not 0; only the weights of a file "
                "(base=FILE) can be evaluated without training"
            )
        return self

    @classmethod
    def of(cls, cfg: DictConfig | Mapping[str, Any]) -> Plan:
        """Check a configuration.

        Args:
            cfg: composed by Hydra, or resolved to plain containers already.

        Raises:
            ConfigError: values that are missing, unknown or cannot work. Values that cannot work together are found
                later; see dxc.pipeline.heading.check.
        """
        values = resolved(cfg) if isinstance(cfg, DictConfig) else cfg
        return checked(
            cls, {key: value for key, value in values.items() if key != "search"}
        )  # none of a design's

    @property
    def name(self) -> str:
        """In one line: 'resnet18 k3 s2 p1 w32, 7ch b16'."""
        return describe(self.values())

    @property
    def trial(self) -> str:
        """Identity of the trial (tag dxc.trial)."""
        return trial_hash(self.values())

    @property
    def design(self) -> str:
        """Identity of the design: the same without the seed (tag dxc.design)."""
        return design_hash(self.values())

    def with_trainer(self, **values: Any) -> Self:
        """The same plan with other values of its trainer, such as max_epochs=2."""
        return self.model_copy(update={"trainer": self.trainer.model_copy(update=values)})

    def for_finetuning(self) -> Self:
        """The plan of training on after pruning: compress.finetune_epochs, in which the learning rate falls along a
        cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
        epochs, lr = self.compress.finetune_epochs, self.compress.finetune_lr
        cosine = {
            "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
            "_partial_": True,
            "T_max": epochs,
        }
        return self.with_trainer(max_epochs=epochs).model_copy(
            update={
                "optimizer": self.optimizer if lr is None else self.optimizer.model_copy(update={"lr": lr}),
                "scheduler": checked(Scheduler, cosine, "scheduler"),
            }
        )
