"""A recipe's model and its reference, ready to be run at chosen tasks on invented images.

Letters: B samples, T tokens, H x W pixels.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.decoders import decoder_model, invented_maps, joined_distances, with_given_maps
from benchmarks.reference import ReferenceUniMMAD
from unimmad.config import Precision, Recipe
from unimmad.evaluation.scoring import score_images
from unimmad.model.backbone import calibrate_batchnorm
from unimmad.model.backends.execution import compile_networks, use_channels_last
from unimmad.model.backends.tf32 import choose_for_training, without_tf32
from unimmad.model.inference import DEFAULT_CACHE_BYTES, for_inference
from unimmad.model.loss import unimmad_loss
from unimmad.model.unimmad import Reconstruction, UniMMAD
from unimmad.profiling.timing import Work

Form = Literal["reference", "ours", "ours, no kernels kept", "ours, channels last", "ours, compiled"]
"""No kernels kept is for evaluation only: what ours costs where no leader's product is at hand."""
FORMS: tuple[Form, ...] = ("reference", "ours")
VARIANTS: dict[str, Form] = {"channels_last": "ours, channels last", "compile": "ours, compiled"}
"""Settings of training and evaluation, and the forms that have them."""
LEADER_STD = 1.0
"""Of the leaders' logits: at the paper's start all leaders are almost equal, and a wrong route would not show."""


class Inputs(NamedTuple):
    """What a forward pass takes."""

    images_TCHW: Tensor
    tokens_per_sample: tuple[int, ...]
    slot_of_token_T: Tensor


class Workbench:
    """One model with random weights; the reference shares them.

    Args:
        recipe: its model, and what evaluation and training are set to.
        device: where all of it is.
        precision: of ours; the reference is always fp32.
        modalities: of each sample.
        decoders_only: leave out all weights but C-MoE's; only ``decoding`` and ``decoding_with_gradients`` can be had.
        one_form: only one of the two will be asked for, so that nothing need be kept for the other.

    Raises:
        ValueError: more modalities than the model has slots.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        precision: Precision,
        modalities: int,
        decoders_only: bool = False,
        one_form: bool = False,
    ) -> None:
        slots = recipe.model.modality_slots
        if modalities > slots:
            raise ValueError(f"--modalities {modalities}: recipe {recipe.name} has {slots} slots")
        self.recipe = recipe
        self.device = device
        self.precision = precision
        self.modalities = modalities
        self.one_form = one_form
        self.decoders_only = decoders_only
        self.fused_reference = False
        """Whether the reference's Adam is fused as ours is: on fake tensors the plain one can't read its steps."""
        self._optimizers: dict[Form, torch.optim.Optimizer] = {}
        self._evaluated: dict[Form, Any] = {}
        self._trained: dict[Form, Any] = {}
        choose_for_training(recipe.training.tf32, device)
        settings = recipe.model.model_copy(update={"initial_leader_std": LEADER_STD})
        with torch.random.fork_rng(), device:
            torch.manual_seed(0)
            self.model = decoder_model(settings, device) if decoders_only else UniMMAD(settings)

    def inputs(self, batch: int) -> Inputs:
        """The same at every call; a smaller batch is the beginning of a larger one."""
        size = self.recipe.model.image_size
        images_TCHW = torch.cat(
            [
                torch.randn(self.modalities, 3, size, size, generator=torch.Generator().manual_seed(sample))
                for sample in range(batch)
            ]
        )
        slots = torch.arange(self.modalities, device=self.device).repeat(batch)
        return Inputs(images_TCHW.to(self.device), (self.modalities,) * batch, slots)

    def settle_batchnorm(self) -> None:
        """Set all running statistics to those of one sample, or random weights would make values grow beyond sense."""
        inputs = self.inputs(1)
        calibrate_batchnorm(self.model.teacher, [inputs.images_TCHW])
        layers = [layer for layer in self.model.modules() if isinstance(layer, nn.BatchNorm2d)]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.momentum = 1.0
        with torch.no_grad():
            self.model.train()(inputs.images_TCHW, inputs.tokens_per_sample, inputs.slot_of_token_T)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def scoring(self, form: Form, batch: int) -> Work:
        """What prediction does with images on the device: network, map, blur, image score. Gives the blurred maps."""
        network, inputs, settings = self._for_evaluation(form), self.inputs(batch), self.recipe.evaluation

        def score() -> Tensor:
            scored = score_images(
                network, *inputs, settings=settings, precision="fp32" if form == "reference" else self.precision
            )
            scored.scores_B.cpu()
            return scored.maps_BHW

        return score

    def training_step(self, form: Form, batch: int) -> Work:
        """Forward, loss, backward, Adam's step. Gives the loss."""
        network, inputs, optimizer = self._for_training(form), self.inputs(batch), self._optimizer(form)

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(self._forward(network, form, inputs))
            loss.backward()
            optimizer.step()
            return loss.detach()[None]

        return step

    def decoding(self, form: Form, batch: int) -> Work:
        """C-MoE of all levels on given maps, with their normalisation and distances. Gives the distances."""
        inputs = self.inputs(batch)
        network = with_given_maps(self._for_evaluation(form), *self._maps(batch))

        @torch.inference_mode()
        @without_tf32()
        def decode() -> Tensor:
            return joined_distances(self._forward(network, form, inputs))

        return decode

    def decoding_with_gradients(self, form: Form, batch: int) -> Work:
        """As ``decoding``, then loss and backward to C-MoE's weights and the shared maps. Gives the loss."""
        inputs = self.inputs(batch)
        shared, teacher = self._maps(batch)
        leaves = [shared_BChw.requires_grad_() for shared_BChw in shared]
        network = with_given_maps(self._for_training(form), shared, teacher)

        def there_and_back() -> Tensor:
            network.zero_grad()
            for leaf_BChw in leaves:
                leaf_BChw.grad = None
            loss = self._loss(self._forward(network, form, inputs))
            loss.backward()
            return loss.detach()[None]

        return there_and_back

    @cached_property
    def reference(self) -> ReferenceUniMMAD:
        return ReferenceUniMMAD(self.model)

    def _optimizer(self, form: Form) -> torch.optim.Optimizer:
        """Adam: ours fused, as in training; the reference's as PyTorch gives it. Rate 0 does the same work and leaves
        the weights, which are the same for both."""
        if form not in self._optimizers:
            network = self.model if form == "reference" else self._for_training(form)
            trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
            fused = True if form != "reference" or self.fused_reference else None
            self._optimizers[form] = torch.optim.Adam(trained, lr=0.0, fused=fused)
        return self._optimizers[form]

    def _maps(self, batch: int) -> tuple[list[Tensor], list[Tensor]]:
        return invented_maps(self.model, batch, batch * self.modalities, self.device)

    def _for_evaluation(self, form: Form) -> Any:
        if form == "reference":
            return self.reference.eval()
        if form not in self._evaluated:
            cache_bytes = 0 if form == "ours, no kernels kept" else DEFAULT_CACHE_BYTES
            model = self.model if self.one_form else copy.deepcopy(self.model)
            self._evaluated[form] = self._varied(evaluation_form(model, cache_bytes), form)
        return self._evaluated[form]

    def _for_training(self, form: Form) -> Any:
        if form == "reference":
            return self.reference.train()
        if form not in self._trained:
            model = self.model if self.one_form or form == "ours" else copy.deepcopy(self.model)
            if not self.decoders_only:
                model.freeze_teacher()
            self._trained[form] = self._varied(model, form)
        return self._trained[form].train()

    def _varied(self, model: UniMMAD, form: Form) -> UniMMAD:
        if form == VARIANTS["channels_last"]:
            use_channels_last(model)
        if form == VARIANTS["compile"]:
            compile_networks(model, self.device)
        return model

    def _forward(self, network: Any, form: Form, inputs: Inputs) -> Reconstruction:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=form != "reference" and self.precision == "bf16"):
            return network(inputs.images_TCHW, inputs.tokens_per_sample, inputs.slot_of_token_T)

    def _loss(self, output: Reconstruction) -> Tensor:
        weights_T = torch.ones(len(output.sample_of_token_T), device=self.device)
        return unimmad_loss(output, weights_T, 1.0, self.recipe.training.focal_gamma).total


def evaluation_form(model: UniMMAD, cache_bytes: int = DEFAULT_CACHE_BYTES) -> UniMMAD:
    """What evaluation runs; ``model`` is changed for it."""
    return for_inference(model, cache_bytes)
