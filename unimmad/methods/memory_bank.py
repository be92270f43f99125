"""PatchCore (Roth et al., CVPR 2022) and plain nearest-neighbour search: patches of normal images are kept.

A patch of a test image is as anomalous as it is far from the nearest patches that are kept. Nothing is trained. Every
modality has a bank of its own, shared by all classes or one for each. An image's score is made of its map, as that of
every other method; PatchCore's weight by the neighbourhood (its equation 7), which its authors' code has not, is not
here.

Letters: B samples, T tokens (sample, modality), N patches of a bank, D features of a patch, h x w positions of the
finest layer, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.config.fields import Integer, NotNegative, Positive, Real, Section
from unimmad.config.method import BackboneKind, MethodSettings, TimmName
from unimmad.methods.coreset import greedy_coreset, projected, random_start_points, rows_to_keep
from unimmad.methods.nearest import nearest_neighbours, neighbours_of_block
from unimmad.methods.patch_collection import BankName, PatchCollection, RandomChoice, check_size
from unimmad.methods.patch_features import joined_patches, patchcore_patches
from unimmad.model.backbone import Backbone, calibrate_batchnorm, load_backbone_weights
from unimmad.model.backends.convolution import use_fast_convolutions
from unimmad.model.folding import fold_batchnorm
from unimmad.model.method import ROOT_OF_SQUARES, FittedMethod, Gather, check_slots, sample_of_token
from unimmad.model.vit import FrozenViT, PositionResampling

JOINS = {"rss": ROOT_OF_SQUARES, "sum": "sum", "max": "maximum"}
"""In words."""
LEAST_DEVIATION = 1e-3
"""A feature's standard deviation counts as this share of all features' mean one at least."""


Dimensions = Annotated[Integer, Field(gt=0, le=65536)]


class MemoryBankSettings(MethodSettings):
    """PatchCore's published ones by default."""

    backbone: TimmName = "wide_resnet50_2.tv_in1k"
    strides: tuple[Positive, ...] = (8, 16)
    """Of the layers whose features are used, ascending; each passes a ReLU."""
    blocks: tuple[NotNegative, ...] = ()
    """With a vision transformer: the blocks whose tokens are used in place of ``strides``, ascending from 0."""
    position_resampling: PositionResampling = "timm"
    """How a vision transformer's position embeddings are brought to the image's grid: as ``timm`` does, or ``dinov2``
    as that backbone's authors do."""
    features: Literal["patchcore", "joined"] = "patchcore"
    """What a patch is described by. ``patchcore``: all values of its 3 x 3 windows, averaged to ``layer_dim`` a layer
    and to ``patch_dim`` in all. ``joined``: the means of its windows in all layers, each divided by its standard
    deviation over the patches that the bank is chosen from."""
    layer_dim: Dimensions = 1024
    """Features of a layer (``patchcore``)."""
    patch_dim: Dimensions = 1024
    """Features of a patch (``patchcore``)."""
    coreset: Literal["none", "random", "greedy", "approximate"] = "approximate"
    """Which patches of the training images a bank keeps: all, a random choice, or PatchCore's greedy one, by distances
    to all patches or, for a start, to some. Only with ``random`` are the others forgotten as soon as they are seen."""
    coreset_share: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """The share of its patches that a bank keeps (``random``: about so many; ``none``: all, whatever it says)."""
    patches: Positive | None = None
    """What a bank keeps at most, where that is less."""
    projection_dim: Positive = 128
    """Dimensions that the greedy choices measure distances in."""
    start_points: Positive = 10
    """Of the approximate choice."""
    neighbours: Positive = 1
    """A patch's score is the mean of its distances to so many."""
    distance: Literal["squared", "root"] = "squared"
    """The squared Euclidean distance, or its root."""
    bank_per: Literal["class", "all"] = "class"
    """A bank of its own for each class and modality, or one a modality for all classes. Where a sample's class is not
    known, each of its images is scored by the class whose bank gives it the smallest mean."""
    max_bank_gb: Annotated[Real, Field(gt=0)] = 8.0
    """What all banks may take together, and before them the patches that they are chosen from, of all processes as of
    each, in units of 10^9 bytes. While the banks are made, twice as much is needed."""
    align_corners: bool = False
    """How coarser layers come bilinearly to the finest one's grid, and patch scores to the image size, as
    ``torch.nn.functional.interpolate`` calls it."""
    join: Literal["rss", "sum", "max"] = "rss"
    """How the maps of a sample's modalities become one: root of the sum of squares, sum, or maximum."""

    @property
    def backbone_kind(self) -> BackboneKind:
        return "transformer" if self.blocks else "convolutional"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.strides or any(sorted(set(used)) != [*used] for used in (self.strides, self.blocks)):
            raise ValueError(
                f"strides {list(self.strides)} and blocks {list(self.blocks)} must ascend; one or more strides"
            )
        if self.coreset == "none" and self.patches is not None:
            raise ValueError("patches: a bank of all patches (coreset: none) has no limit; set coreset: random")
        return self


@dataclass(frozen=True)
class PatchScores:
    """What a forward pass gives."""

    scores_Thw: Tensor
    """float32."""
    sample_of_token_T: Tensor
    batch: int


class _Description(Section):
    """What banks are kept, in the order of their tensors."""

    banks: tuple[tuple[str, NotNegative], ...]


class MemoryBank(FittedMethod):
    """Features and distances are float32 whatever autocast says, since banks are compared with what is made later."""

    def __init__(self, settings: MemoryBankSettings) -> None:
        super().__init__()
        self.settings = settings
        self.modalities_joined = JOINS[settings.join]
        self.looks_at_class = settings.bank_per == "class"
        self.teacher: Backbone | FrozenViT
        if settings.blocks:
            self.teacher = FrozenViT(
                settings.backbone, settings.blocks, settings.image_size, settings.position_resampling
            )
            channels = self.teacher.dim * len(settings.blocks)
        else:
            self.teacher = Backbone(settings.backbone, settings.strides, without_rest=True)
            channels = sum(self.teacher.channels)
        self.teacher.eval().requires_grad_(False)
        self.features = settings.patch_dim if settings.features == "patchcore" else channels
        self.names: list[BankName] = []
        """Whose patches each bank holds."""
        self.banks = nn.ParameterList()
        """[N, D] each."""
        self.deviations = nn.ParameterList()
        """What each bank's features were divided by, [D] each (``joined``)."""
        self.begin(0)

    def begin(self, seed: int) -> None:
        self._seed = seed % 2**63
        self._collection = self._new_collection()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def load_backbone(self) -> str:
        return load_backbone_weights(self.teacher, self.settings.backbone_weights)

    def calibrate_backbone(self, batches: Iterable[Tensor]) -> None:
        if isinstance(self.teacher, Backbone):
            calibrate_batchnorm(self.teacher, batches)

    def inference_form(self, cache_bytes: int) -> Self:
        """BatchNorm is folded into the convolutions, of which those of large maps need fewer multiplications."""
        if isinstance(self.teacher, Backbone):
            fold_batchnorm(self.teacher)
            use_fast_convolutions(self.teacher)
        return self.eval()

    @torch.no_grad()
    def describe_patches(self, images_TCHW: Tensor) -> Tensor:
        """The features of every patch: float32 [T, h, w, D]."""
        with torch.autocast(images_TCHW.device.type, enabled=False):
            return self.patch_features(images_TCHW.float())

    def patch_features(self, images_TCHW: Tensor) -> Tensor:
        maps = self._maps(images_TCHW)
        if self.settings.features == "joined":
            return joined_patches(maps, self.settings.align_corners)
        settings = self.settings
        return patchcore_patches(maps, settings.layer_dim, settings.patch_dim, settings.align_corners)

    def _maps(self, images_TCHW: Tensor) -> Sequence[Tensor]:
        """The teacher's, [T, C, h, w] each, the finest first."""
        if isinstance(self.teacher, FrozenViT):
            return [self.teacher.as_map(tokens.patches_NPD) for tokens in self.teacher(images_TCHW)]
        maps: list[Tensor] = self.teacher(images_TCHW)
        return maps

    def collect(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str],
        keys: Sequence[str],
    ) -> None:
        self._check_length("classes", classes, len(tokens_per_sample))
        self._check_length("keys", keys, len(tokens_per_sample))
        samples = sample_of_token(tokens_per_sample, torch.device("cpu")).tolist()
        slots = slot_of_token_T.tolist()
        names = [self._bank_name(classes[sample], slot) for sample, slot in zip(samples, slots, strict=True)]
        patches_TPD = self.describe_patches(images_TCHW).flatten(1, 2)
        for patches_PD, sample, name in zip(patches_TPD, samples, names, strict=True):
            self._collection.add(name, patches_PD, keys[sample])

    @torch.no_grad()
    def finish(self, gather: Gather) -> None:
        collected = self._collection.gathered(gather)
        self._collection = self._new_collection()
        self._name_banks(list(collected))
        for number, name in enumerate(self.names):
            rows_ND = collected.pop(name).rows_ND.to(self._device)
            if self.settings.features == "joined":
                deviation_D = rows_ND.std(0, correction=0)
                # A feature that hardly varies would drown all others, one that is always 0 would make all NaN.
                least = LEAST_DEVIATION * deviation_D.mean()
                self.deviations.append(_frozen(deviation_D.clamp_min(least.clamp_min(torch.finfo().tiny))))
                rows_ND = rows_ND / self.deviations[number]
            self._check_rows(name, len(rows_ND))
            self.banks.append(_frozen(rows_ND[self._choice(rows_ND)]))
            self._check_rows(name, len(self.banks[number]))

    def describe(self) -> dict[str, Any]:
        return {"banks": [list(name) for name in self.names]}

    def restore(self, description: Mapping[str, Any]) -> None:
        try:
            names = [BankName(*bank) for bank in _Description.model_validate(description).banks]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"this describes no memory bank: {where}: {first['msg']}") from None
        if len(set(names)) < len(names):
            raise ValueError("this describes no memory bank: it has two banks of one class and slot")
        for name in names:
            self._check_name(name)
        self._name_banks(names)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        bank_shapes = _numbered(shapes, "banks", len(self.names))
        for name, shape in zip(self.names, bank_shapes, strict=True):
            if len(shape) != 2 or shape[1] != self.features:
                raise ValueError(
                    f"a memory bank has the shape {list(shape)}, not [patches, {self.features}]: it was made of "
                    "other features than the recipe's"
                )
            self._check_rows(name, shape[0])
        scaled = self.settings.features == "joined"
        deviation_shapes = _numbered(shapes, "deviations", len(self.names) if scaled else 0)
        if any(shape != (self.features,) for shape in deviation_shapes):
            raise ValueError(f"a memory bank's deviations are not [{self.features}]: other features than the recipe's")
        check_size(sum(shape[0] for shape in bank_shapes), self.features, self.settings.max_bank_gb)
        self.banks = nn.ParameterList(_frozen(torch.zeros(shape, device=self._device)) for shape in bank_shapes)
        self.deviations = nn.ParameterList(
            _frozen(torch.ones(shape, device=self._device)) for shape in deviation_shapes
        )

    @torch.no_grad()
    def forward(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str | None] | None = None,
    ) -> PatchScores:
        """Scores of all patches.

        Raises:
            ValueError: there is no bank for a sample's class or for a slot.
        """
        samples_T = sample_of_token(tokens_per_sample, torch.device("cpu"))
        if classes is not None:
            self._check_length("classes", classes, len(tokens_per_sample))
        tokens_of: dict[int, list[int]] = {}
        for token, (sample, slot) in enumerate(zip(samples_T.tolist(), slot_of_token_T.tolist(), strict=True)):
            for number in self.banks_to_search(None if classes is None else classes[sample], slot):
                tokens_of.setdefault(number, []).append(token)
        patches_ThwD = self.describe_patches(images_TCHW)
        best_Thw = torch.full_like(patches_ThwD[..., 0], torch.inf)
        for number, tokens in tokens_of.items():
            chosen = torch.tensor(tokens, device=best_Thw.device)
            best_Thw[chosen] = _of_nearer_bank(best_Thw[chosen], self._search(patches_ThwD[chosen], number))
        return PatchScores(best_Thw, samples_T.to(best_Thw.device), len(tokens_per_sample))

    def maps(self, output: PatchScores) -> Tensor:
        maps_THW = self.at_image_size(output.scores_Thw)
        nothing_BHW = maps_THW.new_zeros(output.batch, *maps_THW.shape[1:])
        if self.settings.join == "max":  # scores are 0 or more
            places_THW = output.sample_of_token_T[:, None, None].expand_as(maps_THW)
            return nothing_BHW.scatter_reduce(0, places_THW, maps_THW, "amax")
        if self.settings.join == "sum":
            return nothing_BHW.index_add(0, output.sample_of_token_T, maps_THW)
        return nothing_BHW.index_add(0, output.sample_of_token_T, maps_THW.square()).sqrt()

    def with_fixed_modalities(self, slots: Sequence[int]) -> nn.Module:
        """As ``Method``'s; the class of a sample is not known to it."""
        check_slots(slots, self.modality_slots)
        return _FixedModalities(self, slots)

    def at_image_size(self, scores_Thw: Tensor) -> Tensor:
        """[T, H, W]."""
        size, align_corners = (self.image_size, self.image_size), self.settings.align_corners
        return F.interpolate(scores_Thw[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]

    @property
    def _device(self) -> torch.device:
        return next(self.teacher.parameters()).device

    def _new_collection(self) -> PatchCollection:
        settings = self.settings
        at_random = RandomChoice(settings.coreset_share, settings.patches) if settings.coreset == "random" else None
        return PatchCollection(self.features, self._seed, at_random, settings.max_bank_gb)

    def _name_banks(self, names: Sequence[BankName]) -> None:
        """There are these banks from now on, all still empty."""
        self.names = list(names)
        self.banks, self.deviations = nn.ParameterList(), nn.ParameterList()

    def _choice(self, rows_ND: Tensor) -> Tensor | slice:
        """The rows that a bank keeps."""
        settings = self.settings
        if settings.coreset in ("none", "random"):  # the random choice is made while they are collected
            return slice(None)
        generator = torch.Generator().manual_seed(self._seed)
        rows_Nd = projected(rows_ND, settings.projection_dim, generator)
        count = rows_to_keep(len(rows_ND), settings.coreset_share, settings.patches)
        if settings.coreset == "greedy":
            return greedy_coreset(rows_Nd, count)
        return greedy_coreset(rows_Nd, count, random_start_points(len(rows_ND), settings.start_points, generator))

    def _search(self, patches_thwD: Tensor, number: int) -> Tensor:
        """Scores by one bank: [t, h, w]."""
        with torch.autocast(patches_thwD.device.type, enabled=False):
            queries_nD = self.queries(patches_thwD, number)
            distances_nk, _ = nearest_neighbours(queries_nD, self.banks[number], self.settings.neighbours)
        return self.patch_scores(distances_nk).unflatten(0, patches_thwD.shape[:3])

    def queries(self, patches_thwD: Tensor, number: int) -> Tensor:
        """As the bank's rows are: [n, D]."""
        queries_nD = patches_thwD.flatten(0, 2)
        return queries_nD / self.deviations[number] if len(self.deviations) else queries_nD

    def patch_scores(self, distances_nk: Tensor) -> Tensor:
        """From squared distances: [n]."""
        return (distances_nk.sqrt() if self.settings.distance == "root" else distances_nk).mean(1)

    def banks_to_search(self, class_name: str | None, slot: int) -> list[int]:
        if class_name is None and self.settings.bank_per == "class":
            found = [number for number, name in enumerate(self.names) if name.slot == slot]
        else:
            wanted = self._bank_name(class_name or "", slot)
            found = [number for number, name in enumerate(self.names) if name == wanted]
        if not found:
            whose = f"class {class_name!r}" if class_name and self.settings.bank_per == "class" else "any class"
            known = sorted({name.class_name for name in self.names if name.class_name})
            raise ValueError(
                f"there is no memory bank of {whose} for modality slot {slot}; fit it to normal samples that have that "
                f"modality{', or name one of ' + ', '.join(known) if known else ''}"
            )
        return found

    def _bank_name(self, class_name: str, slot: int) -> BankName:
        name = BankName("" if self.settings.bank_per == "all" else class_name, slot)
        self._check_name(name)
        return name

    def _check_name(self, name: BankName) -> None:
        if not 0 <= name.slot < self.modality_slots:
            raise ValueError(
                f"modality slot {name.slot} is not one of the {self.modality_slots} of model.modality_slots"
            )
        if (self.settings.bank_per == "all") != (name.class_name == ""):
            raise ValueError(
                f"a memory bank of class {name.class_name!r} is none of model.bank_per={self.settings.bank_per}"
            )

    def _check_rows(self, name: BankName, rows: int) -> None:
        if rows < self.settings.neighbours:
            raise ValueError(
                f"the memory bank of class {name.class_name!r}, slot {name.slot}, has {rows} patches, fewer than "
                f"model.neighbours, {self.settings.neighbours}: keep more, by model.coreset_share or model.patches"
            )

    @staticmethod
    def _check_length(what: str, given: Sequence[object], batch: int) -> None:
        if len(given) != batch:
            raise ValueError(f"{len(given)} {what} were given for {batch} samples")


class _FixedModalities(nn.Module):
    """Every sample has the modalities of ``slots`` and is of any class; plain operations that can be traced."""

    def __init__(self, method: MemoryBank, slots: Sequence[int]) -> None:
        super().__init__()
        self.method = method.eval()
        self.banks_of_M = [method.banks_to_search(None, slot) for slot in slots]

    def forward(self, images_BMCHW: Tensor) -> Tensor:
        """Normalised images -> maps before blurring, float32 [B, H, W]."""
        patches_ThwD = self.method.patch_features(images_BMCHW.flatten(0, 1))
        patches_BMhwD = patches_ThwD.unflatten(0, images_BMCHW.shape[:2])
        of_modalities = zip(patches_BMhwD.unbind(1), self.banks_of_M, strict=True)
        maps_MBHW = torch.stack([self.method.at_image_size(self._modality(*pair)) for pair in of_modalities])
        if self.method.settings.join == "max":
            return maps_MBHW.amax(0)
        return maps_MBHW.sum(0) if self.method.settings.join == "sum" else maps_MBHW.square().sum(0).sqrt()

    def _modality(self, patches_BhwD: Tensor, numbers: Sequence[int]) -> Tensor:
        """Scores of one modality's patches: [B, h, w]."""
        method, size = self.method, patches_BhwD.shape[:3]
        of_banks = []
        for number in numbers:
            bank_ND = method.banks[number]
            queries_nD, squares_N = method.queries(patches_BhwD, number), bank_ND.square().sum(1)
            distances_nk, _ = neighbours_of_block(queries_nD, bank_ND, squares_N, method.settings.neighbours)
            of_banks.append(method.patch_scores(distances_nk).unflatten(0, size))
        return reduce(_of_nearer_bank, of_banks)


def _of_nearer_bank(first_thw: Tensor, second_thw: Tensor) -> Tensor:
    """Of each image the scores whose mean is smaller."""
    return torch.where((second_thw.mean((1, 2)) < first_thw.mean((1, 2)))[:, None, None], second_thw, first_thw)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def _numbered(shapes: Mapping[str, tuple[int, ...]], prefix: str, count: int) -> list[tuple[int, ...]]:
    """The shapes of ``prefix.0`` and so on.

    Raises:
        ValueError: they are more or fewer than ``count``.
    """
    found = {name for name in shapes if name.startswith(f"{prefix}.")}
    wanted = [f"{prefix}.{number}" for number in range(count)]
    if found != set(wanted):
        raise ValueError(f"{len(found)} tensors {prefix}.* do not belong to {count} memory banks; the file is damaged")
    return [tuple(shapes[name]) for name in wanted]
