"""What a method is to the rest of the package: a network that gives a loss in training and anomaly maps in scoring.

Trainer, evaluation, Detector and export know this class and no method's name. UniMMAD is one (model/unimmad.py), the
methods that it is compared with are others (unimmad/methods).

Letters: B samples, T tokens (sample, modality), C = 3 channels, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from unimmad.config import TrainingSettings
    from unimmad.model.routing import Routing


ROOT_OF_SQUARES = "root of the sum of squares"


def alone(value: Tensor) -> Tensor:
    """``StepFacts.global_sum`` of one process."""
    return value


@dataclass(frozen=True)
class StepFacts:
    """What a loss may depend on beside a forward pass."""

    weight_of_token_T: Tensor
    """float32; the loss weight of each token's dataset."""
    settings: TrainingSettings
    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """From 0."""
    world_size: int = 1
    global_sum: Callable[[Tensor], Tensor] = alone
    """Sums a tensor over all ranks, without gradient. Collective."""


@dataclass(frozen=True)
class Loss:
    """``total`` is what to differentiate; each is a scalar whose mean over ranks is the global batch's value."""

    total: Tensor
    parts: dict[str, Tensor]
    """What the log shows beside it, by name; the same names at every step."""


class OwnLevels(NamedTuple):
    """What a trained network alone says of images of any class, without a bank."""

    distances: Sequence[Tensor] = ()
    """How far each token is from what the network makes of it, 0 or more: float32 [T, h, w] a level. None where nothing
    was trained."""
    routings: Sequence[Sequence[Routing]] = ()
    """As ``Method.routings``."""


class Method(nn.Module, ABC):
    """A network with its loss and its maps. Trainable parameters are those that require a gradient."""

    settings: Any
    """The recipe's section ``model``, of the method's own type."""
    leaders: int = 0
    """Experts of each gate, of methods that route tokens to experts."""
    kernel_sizes: tuple[int, ...] = ()
    """Of each level's branches, a gate each, of methods that route tokens to experts."""
    on_routed: Callable[[Sequence[Routing]], Sequence[Routing]] | None = None
    """Of methods that route tokens to experts: told all gates' decisions, level by level, before any expert computes,
    since what comes to where is then known. Gives them back, each with what its branch needs besides."""
    memory_format: torch.memory_format = torch.contiguous_format
    """Of the maps of convolutional networks."""
    own_tensors: tuple[str, ...] = ()
    """Of its state dict, those that the method which it extends does not have."""
    sees_drawn: bool = False
    """Whether ``forward`` takes ``drawn_TCHW`` besides in training: the same images with anomalies drawn onto some
    (``training.drawn_share``), for the part that has to give back what was there."""
    looks_at_class: bool = False
    """Whether a sample's scores are others where its class is known: thresholds then hold for those alone."""
    modalities_joined: str = ROOT_OF_SQUARES
    """How the maps of a sample's modalities become one, in a few words for reports."""

    @property
    def image_size(self) -> int:
        """Height and width of every image, in pixels."""
        return int(self.settings.image_size)

    @property
    def modality_slots(self) -> int:
        """Images of a sample at most."""
        return int(self.settings.modality_slots)

    @abstractmethod
    def load_backbone(self) -> str:
        """Fill what is pretrained as ``settings.backbone_weights`` say; gives in words what was loaded.

        Raises:
            ValueError: the weights can't be had, or don't fit.
        """

    @abstractmethod
    def forward(self, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor) -> Any:
        """What ``loss`` and ``maps`` are made of.

        Args:
            images_TCHW: float32, normalised, tokens listed sample by sample.
            tokens_per_sample: B counts, on the host, each 1 or more, summing to T.
            slot_of_token_T: int64, the input slot of each token's modality.
        """

    @abstractmethod
    def loss(self, output: Any, facts: StepFacts) -> Loss:
        """The training loss of this rank's share of the global batch."""

    @abstractmethod
    def maps(self, output: Any) -> Tensor:
        """Anomaly maps before blurring: float32 [B, H, W]."""

    @abstractmethod
    def with_fixed_modalities(self, slots: Sequence[int]) -> nn.Module:
        """A network that can be traced: normalised images [B, M, C, H, W], M in the order of ``slots``, to maps
        [B, H, W]. It may share its parts with this one, which must not be used by itself afterwards.

        Raises:
            ValueError: a slot that the method does not have, or one twice.
        """

    def calibrate_backbone(self, batches: Iterable[Tensor]) -> None:
        """Fit the statistics of a backbone without weights to batches of images [N, C, H, W]. Nothing by default."""

    def freeze_teacher(self) -> None:
        """Called once, before training, on the device: what is not trained is final from now on."""

    def inference_form(self, cache_bytes: int) -> Method:
        """For scoring alone: the same numbers, to rounding, perhaps in fewer operations; in place.

        Any number of threads may score with it at once.

        Args:
            cache_bytes: what it may keep from batch to batch.
        """
        return self.eval().requires_grad_(False)

    def networks(self) -> list[nn.Module]:
        """The parts that may be compiled; a list's members, since the list itself is never called."""
        return [
            network for child in self.children() for network in (child if isinstance(child, nn.ModuleList) else [child])
        ]

    def frozen_features(self) -> tuple[Any, str] | None:
        """Where the function lies that gives the features of images which training leaves as they are: an object and
        its attribute's name. It takes [T, C, H, W] and gives tensors whose first dimension is T."""
        return None

    def parts(self, output: Any) -> Tensor | None:
        """What each token's modality adds to its sample's map, before blurring: [T, H, W], 0 or more; those of a sample
        add up to ``maps``. None of methods that can't say it."""
        return None

    def teacher_levels(self, images_TCHW: Tensor) -> list[Tensor] | None:
        """The features that no training moves, float32 whatever autocast says, finest first: [T, C_l, h, w]. None where
        the method has none that could be searched level by level."""
        return None

    def own_levels(self, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor) -> OwnLevels:
        """As ``forward`` takes them: what a class added later (methods/added_class.py) has beside its bank."""
        return OwnLevels()

    def routings(self, output: Any) -> Sequence[Sequence[Routing]]:
        """The gates' decisions by level, then branch, of methods that route tokens to experts."""
        return ()


Gather = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Collective: every rank gives tensors on the CPU under the same names, alike in all dimensions but the first. Rank 0
gets those of all ranks joined along the first dimension, in the order of ranks, every other rank gets an empty dict."""


class Fitted(ABC):
    """What a method is, beside ``Method``, that sees every training sample once to be made of them.

    After ``begin``, ``collect`` is called for every sample, on any rank, in any order; then ``finish``, on all ranks.
    After it rank 0 alone is fitted: by ``describe`` and its tensors the others, and every checkpoint, become what it
    is, in this order: ``restore`` (what it describes), ``resize`` (its tensors' shapes), ``load_state_dict``.
    ``forward`` takes ``classes`` besides: those of the B samples, None where one is not known, or where none is.
    """

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether it is; after ``finish`` on rank 0 alone."""

    @abstractmethod
    def begin(self, seed: int, adding: bool = False) -> None:
        """Forget what was collected; what is chosen at random from now on follows from ``seed``. With ``adding`` what
        the method is fitted to stays, and ``finish`` adds to it."""

    @abstractmethod
    def collect(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str],
        keys: Sequence[str],
        views: Sequence[int] | None = None,
    ) -> None:
        """Take in B training samples, each a photograph (of one or several modalities) or a view of one.

        Args:
            images_TCHW: as for ``forward``.
            tokens_per_sample: as for ``forward``.
            slot_of_token_T: as for ``forward``.
            classes: the class of each sample, B.
            keys: what tells each photograph from all others, B; with it the result depends neither on the order in
                which samples come nor on the ranks that see them.
            views: which view of its photograph each sample is, B, from 0; None: the only one.

        Raises:
            ValueError: what is kept of the samples would take more memory than the settings allow.
        """

    @abstractmethod
    def finish(self, gather: Gather) -> None:
        """Fit to what all ranks collected, and forget that; collective.

        Raises:
            ValueError: on rank 0, perhaps between two calls of ``gather``: there are no samples, too few, too many, or
                one came twice.
        """

    @abstractmethod
    def forget(self, classes: Sequence[str]) -> None:
        """Be no longer fitted to these classes, where each class has what is its own."""

    @abstractmethod
    def is_fitted_to(self, class_name: str) -> bool:
        """Whether there is something of this class's own."""

    @abstractmethod
    def take_owners(self, made: Fitted) -> None:
        """Learn which photograph what it keeps is of, from the same method as ``finish`` left it, which alone knows."""

    @abstractmethod
    def leave_out(self, photograph: str) -> AbstractContextManager[None]:
        """While this is entered, score as if it had not seen one training photograph, of this key (as ``collect`` was
        given it). Right after ``finish`` or ``take_owners``."""

    @abstractmethod
    def has_others(self, class_name: str) -> bool:
        """Whether what it keeps of this class, or of all classes in one, is of other photographs than the one that is
        left out, too; False where that is not known."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What its tensors do not say, as JSON can hold it; also before it is fitted."""

    @abstractmethod
    def restore(self, description: Mapping[str, Any]) -> None:
        """Become what ``describe`` said, without its tensors.

        Raises:
            ValueError: this is not such a description, or one of other settings.
        """

    @abstractmethod
    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for tensors of these shapes, by their names in the state dict; others' are passed over.

        Raises:
            ValueError: the shapes are not those of what was restored, or would take more memory than allowed.
        """


class FittedMethod(Fitted, Method):
    """A method that is fitted instead of trained: it has no loss."""

    @abstractmethod
    def forward(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str | None] | None = None,
    ) -> Any:
        """As ``Method.forward``; ``classes`` are those of the B samples, None where one is not known."""

    def loss(self, output: Any, facts: StepFacts) -> NoReturn:
        """There is none.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{type(self).__name__} is fitted, not trained: it has no loss")


def check_slots(slots: Sequence[int], available: int) -> None:
    """
    Raises:
        ValueError: one is not below ``available``, or there twice.
    """
    if not slots or len(set(slots)) < len(slots) or not set(slots) <= set(range(available)):
        raise ValueError(f"slots {list(slots)} must differ and lie in 0 to {available - 1}, those of the model")


def sample_of_token(tokens_per_sample: Sequence[int], device: torch.device) -> Tensor:
    """The sample that each token belongs to: int64 [T]."""
    counts = torch.tensor(tokens_per_sample)
    samples = torch.arange(len(tokens_per_sample))
    # The sum is given so that no size depends on a tensor's values, which fake tensors do not have.
    sample_of_token_T = torch.repeat_interleave(samples, counts, output_size=sum(tokens_per_sample))
    return sample_of_token_T.to(device, non_blocking=True)
