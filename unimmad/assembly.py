"""A recipe's model, built and given its starting weights."""

from __future__ import annotations

import torch

from unimmad.config import ModelSettings
from unimmad.model.backbone import load_backbone_weights
from unimmad.model.unimmad import Architecture, UniMMAD


def architecture_of(settings: ModelSettings) -> Architecture:
    """What the model needs to know of the settings."""
    return Architecture(
        image_size=settings.image_size,
        modality_slots=settings.modality_slots,
        backbone=settings.backbone,
        frozen_encoder_batchnorm=settings.encoder_batchnorm == "frozen",
        fcm_dim=settings.fcm_dim,
        bottleneck_dim=settings.bottleneck_dim,
        decoder_planes=settings.decoder_planes,
        decoder_blocks=settings.decoder_blocks,
        embed_dim=settings.embed_dim,
        kernel_sizes=settings.kernel_sizes,
        leaders=settings.leaders,
        base_experts=settings.base_experts,
        top_k=settings.top_k,
        banks=settings.banks,
        initial_leader_std=settings.initial_leader_std,
        initial_output_bias=settings.initial_output_bias,
    )


def empty_model(settings: ModelSettings) -> UniMMAD:
    """The model with random weights, to be filled from a checkpoint.

    Raises:
        ValueError: the backbone does not exist or does not fit.
    """
    return UniMMAD(architecture_of(settings))


def new_model(settings: ModelSettings, seed: int) -> tuple[UniMMAD, str]:
    """The model at the start of training, the same for the same seed; and in words what its backbone was loaded with.

    Raises:
        ValueError: as ``empty_model``, or the backbone's weights can't be had.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = empty_model(settings)
    origin = load_backbone_weights(model.teacher, settings.backbone_weights)
    model.copy_teacher_into_encoder()
    return model, origin
