"""The section ``training``: the optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from unimmad.config.fields import Integer, NotNegative, Positive, Real, Section, off_or_from
from unimmad.config.tiles import TileSettings


class TrainingSettings(Section):
    """The optimisation, the same on any number of ranks."""

    seed: Integer = 0
    """Seed of the new weights, of the order of samples and of modality dropout."""
    global_batch: Positive = 10
    """Samples of one optimizer step over all ranks."""
    accumulation: Positive = 1
    """Micro-batches that the batch of a step is computed in."""
    epochs: Positive = 200
    """Length of the training; one epoch is as many draws as there are training samples."""
    steps: NotNegative = 0
    """Length of the training in optimizer steps; 0: ``epochs`` decide."""
    tiles: TileSettings = TileSettings()
    """Tiles of images that are larger than one: training draws one of an image's tiles, which ``size`` (in pixels of
    the stored image; 0: none) and ``overlap`` decide, and with ``whole`` every second time the whole image. Score with
    the same by ``evaluation.tiles``."""
    drawn_share: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Share of samples onto whose images anomalies are drawn before the encoder sees them, not before the teacher does
    (not in the paper): what was there has to be reconstructed. For methods that reconstruct a teacher's features."""
    learning_rate: Annotated[Real, Field(ge=1e-12, le=100)] = 1e-3
    """Learning rate at the top of the schedule, whatever the global batch and the number of ranks."""
    warmup_steps: NotNegative = 0
    """Steps over which the learning rate rises linearly from 0 (not in the paper)."""
    schedule: Literal["epoch", "step", "warmup_cosine", "drop", "constant"] = "epoch"
    """How the learning rate falls. ``epoch`` and ``step``: a cosine that moves once an epoch (the paper) or every step,
    times the warm-up; ``warmup_cosine``: a cosine that begins behind the warm-up; ``drop``: to a tenth when 80% of the
    training is done; ``constant``: not at all."""
    final_rate_fraction: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Learning rate at the end of a cosine, as a fraction of ``learning_rate``."""
    optimizer: Literal["adam", "adamw", "stable_adamw", "sgd"] = "adam"
    """``adam`` (the paper), ``adamw``, ``sgd`` (plain steps without momentum), or ``stable_adamw``: AdamW with AMSGrad
    whose step of each tensor is divided by the root mean square of its update, where that is above 1."""
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the two moments of the Adam family."""
    adam_epsilon: Annotated[Real, Field(gt=0, le=1)] = 1e-8
    """Number that the Adam family adds to the denominator of a step."""
    weight_decay: Annotated[Real, Field(ge=0, le=10)] = 0.0
    """Share of weight times learning rate that a step of the AdamW family takes off a weight."""
    decay_vectors: bool = True
    """Whether weight decay also acts on biases and scales of normalisation (parameters of one dimension)."""
    gradient_clipping: Annotated[Real, AfterValidator(off_or_from(1e-9)), Field(le=1e9)] = 0.0
    """Largest norm of the whole gradient; 0 is off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """``bf16``: autocast over fp32 weights; normalisation (the teacher's, which is folded, excepted), gate, cosine and
    loss stay fp32."""
    tf32: bool = True
    """On a GPU, convolutions and matrix products of fp32 operands in TF32, as in the released code; not in scoring."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time, same numbers."""
    channels_last: bool = False
    """Lay out maps of backbones and compression with a position's channels side by side: same numbers, to rounding."""
    compile: bool = False
    """Compile backbones, input embedding and compression (``torch.compile``): minutes until the first step is done."""
    focal_gamma: Annotated[Real, Field(ge=0, le=32)] = 2.0
    """Exponent of the focal reconstruction loss: a distance d counts with weight d^focal_gamma; 0 weighs all alike."""
    balance_epochs: Positive = 200
    """The balance loss is scaled by max(1 - epoch / balance_epochs, balance_floor)."""
    balance_floor: Annotated[Real, Field(ge=0, le=1000)] = 0.001
    """Least factor of the balance loss, which it keeps after ``balance_epochs``."""
    log_every: Positive = 10
    """Steps between TensorBoard points."""
    evaluate_every: NotNegative = 0
    """Steps between evaluations on the test split, by all ranks; 0 is never."""
    checkpoint_every: Positive = 500
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints stay on disk."""

    @model_validator(mode="after")
    def _check(self) -> TrainingSettings:
        if self.global_batch % self.accumulation:
            raise ValueError(f"global_batch {self.global_batch} is not a multiple of accumulation {self.accumulation}")
        if self.weight_decay and self.optimizer not in ("adamw", "stable_adamw"):
            raise ValueError(f"weight_decay {self.weight_decay:g} is for optimizer adamw or stable_adamw")
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile and activation_checkpointing do not go together: set one of them to false")
        return self
