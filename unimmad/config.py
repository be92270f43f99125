"""Recipes: every setting of a run, typed, frozen, documented, and checked together at load.

A recipe is a YAML file with the sections ``model``, ``data``, ``training`` and ``evaluation``. Shipped ones (``demo``,
``tiny``, ``paper``, ``real``) are named; any other is given by its path. ``--set KEY=VALUE`` overrides a single value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from unimmad.documents import MAX_YAML_BYTES, parse_yaml, read_limited, short, shown
from unimmad.validation import one_line

RECIPES_FOLDER = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "demo"
CHANNELS_PER_MODALITY = 3
MAX_BLUR = 4095
"""Pixels."""
MAX_PROBLEMS = 10
"""Of a recipe, said at once."""


def _no_truth_value(value: object) -> object:
    """Python, and so pydantic, counts ``true`` as 1."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


def _off_or_from(smallest: float) -> Callable[[float], float]:
    """0, or ``smallest`` and more: less is 0 where it is computed with, and divides by it."""

    def check(value: float) -> float:
        if value != 0 and not value >= smallest:
            raise ValueError(f"Input should be 0 (off), or greater than or equal to {smallest:g}")
        return value

    return check


def _of_timms_list(name: str) -> str:
    """With ``hf-hub:`` and ``local-dir:`` timm would fetch and build what another place says."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError("name a network of timm's own list; weights of another come by model.backbone_weights=FILE")
    return name


Integer = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[float, BeforeValidator(_no_truth_value)]
Positive = Annotated[Integer, Field(gt=0)]
NotNegative = Annotated[Integer, Field(ge=0)]
Blocks = Annotated[Integer, Field(gt=0, le=256)]
KernelSize = Annotated[Integer, Field(gt=0, le=63)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(_Section):
    """METHOD: sizes of the network. Defaults are the paper's."""

    image_size: Positive = 256
    """Height and width of every image; the learned input embedding ties a model to it. A multiple of 32."""
    modality_slots: Positive = 4
    """Images of a sample at most; each slot is three input channels."""
    backbone: Annotated[str, AfterValidator(_of_timms_list)] = "wide_resnet50_2.tv2_in1k"
    """Any network of timm's own list whose features_only form has strides 4, 8 and 16."""
    backbone_weights: str = "imagenet"
    """``imagenet`` (timm's; training stops where they can't be had), ``imagenet-or-none``, ``none``, or a file (.pth,
    .safetensors)."""
    encoder_batchnorm: Literal["batch", "frozen"] = "batch"
    """``frozen``: the encoder's BatchNorm stays as loaded (for weights with folded BatchNorm)."""
    fcm_dim: Positive = 512
    """Channels at which the feature compression module joins the three stages."""
    bottleneck_dim: Positive = 2048
    """Channels of its narrowest map, at stride 32."""
    decoder_planes: tuple[Positive, Positive, Positive] = (256, 128, 64)
    """Planes of its three up-sampling stages; each gives 4 times as many channels."""
    decoder_blocks: tuple[Blocks, Blocks, Blocks] = (3, 4, 6)
    """Bottleneck blocks of each up-sampling stage."""
    embed_dim: Annotated[Integer, Field(gt=0, le=8192)] = 256
    """Channels inside C-MoE."""
    kernel_sizes: Annotated[tuple[KernelSize, ...], Field(min_length=1, max_length=8)] = (1, 3, 5)
    """One MiMoE branch each; odd."""
    leaders: Positive = 32
    """Leader experts of a branch, the experts that the gate routes to."""
    base_experts: Positive = 8
    """Base kernels in a bank, which the leaders mix."""
    top_k: Positive = 2
    """Leaders that a token is routed to."""
    banks: Positive = 1
    """Banks of base kernels a level and kernel size; leader l mixes from bank l // (leaders / banks)."""
    initial_leader_std: Annotated[Real, Field(ge=0, le=100)] = 0.02
    """Standard deviation of the leaders' logits at the start. At the paper's 0.02 all leaders begin almost equal; short
    training gains from leaders that differ at once."""
    initial_output_bias: Annotated[Real, Field(ge=-100, le=100)] = 0.0
    """Shift of the reconstruction's last GroupNorm at the start (the paper: 0). Above 0 fewer values begin cut off by
    the ReLU behind it, which suits the dense features of a backbone without weights."""

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if self.image_size % 32:
            raise ValueError(f"image_size {self.image_size} is not a multiple of 32")
        if self.top_k > self.leaders:
            raise ValueError(f"top_k {self.top_k} is more than leaders {self.leaders}")
        if self.leaders % self.banks:
            raise ValueError(f"leaders {self.leaders} can't be shared evenly among banks {self.banks}")
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes {self.kernel_sizes} must be odd")
        return self


class DataSettings(_Section):
    """How shards are read."""

    workers: Annotated[Integer, Field(ge=0, le=256)] = 2
    """Loader processes of each rank; 0 decodes in the trainer itself."""
    dataset_weights: dict[str, Annotated[Real, Field(ge=1e-6, le=1e6)]] = {}
    """Loss weight of each data set, by its name; others weigh 1. A name that is not among the data is an error, unless
    a shipped recipe has it."""
    sampling: Literal["balanced", "natural"] = "balanced"
    """``balanced``: every class equally likely at each draw, with replacement (the paper). ``natural``: every sample
    once an epoch."""
    modality_dropout: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Probability that a modality of a training sample is left out, so that the model learns to do without each sensor
    (not in the paper); at least one stays."""
    on_error: Literal["stop", "skip"] = "stop"
    """A corrupt sample ends the training (``stop``), or another takes its place; the end of the run tells how often."""
    cache_folder: str = ""
    """Where shards from URLs are kept, shared by all processes of a node; empty: in ``$SLURM_TMPDIR``, else
    ``$TMPDIR``, which are the node's own, else ``$XDG_CACHE_HOME/unimmad`` or ``~/.cache/unimmad``."""
    cache_gb: Annotated[Real, Field(ge=1e-9, le=1e9)] = 50.0
    """Most that it may hold, in 10^9 bytes; the least recently read shards make room. Less than what the node's loader
    processes fetch at the same time is exceeded by that."""
    resized_cache_gb: Annotated[Real, Field(ge=0, le=1e9)] = 0.0
    """Most that resized training images may take there, in 10^9 bytes, so that a node decodes each once and not once an
    epoch; 0 keeps none."""


class TrainingSettings(_Section):
    """The optimisation, the same on any number of ranks."""

    seed: Integer = 0
    global_batch: Positive = 10
    """Samples of one optimizer step over all ranks."""
    accumulation: Positive = 1
    """Micro-batches that a step is computed in."""
    epochs: Positive = 200
    """Length of the cosine schedule; one epoch is as many draws as there are training samples."""
    learning_rate: Annotated[Real, Field(ge=1e-12, le=100)] = 1e-3
    warmup_steps: NotNegative = 0
    """Steps over which the learning rate rises linearly from 0 (not in the paper)."""
    schedule: Literal["epoch", "step"] = "epoch"
    """When the cosine moves: once an epoch (the paper) or every step."""
    optimizer: Literal["adam", "sgd"] = "adam"
    gradient_clipping: Annotated[Real, AfterValidator(_off_or_from(1e-9)), Field(le=1e9)] = 0.0
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
    balance_epochs: Positive = 200
    """The balance loss is scaled by max(1 - epoch / balance_epochs, balance_floor)."""
    balance_floor: Annotated[Real, Field(ge=0, le=1000)] = 0.001
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
        if self.compile and self.activation_checkpointing:
            raise ValueError("compile and activation_checkpointing do not go together: set one of them to false")
        return self


class EvaluationSettings(_Section):
    """What turns maps into scores; printed with every table, since this is where papers differ."""

    batch_size: Positive = 8
    blur_kernel: Annotated[Integer, Field(gt=0, le=MAX_BLUR)] = 15
    """Side of the Gaussian's window in pixels; odd. Zero padding."""
    blur_sigma: Annotated[Real, AfterValidator(_off_or_from(0.1)), Field(le=MAX_BLUR)] = 4.0
    """Standard deviation in pixels; 0 leaves the map as it is, and so would one below 0.1."""
    top_share: Annotated[Real, Field(gt=0, le=1)] = 0.001
    """An image's score is the mean of this share of its map's largest values (at least one)."""
    pictures_per_class: NotNegative = 8
    """Heat maps drawn of each class."""
    leader_cache_mib: NotNegative = 256
    """Memory for routed leaders' composed kernels, kept from batch to batch (27.5 MB a leader at the paper's sizes)."""
    channels_last: bool = False
    """As ``training.channels_last``."""
    compile: bool = False
    """As ``training.compile``; in reports, not in prediction."""

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel {self.blur_kernel} must be odd")
        return self


class Recipe(_Section):
    """Everything a run is made of, except where its data lie and where its output goes."""

    name: str
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    def with_precision(self, precision: Literal["fp32", "bf16"]) -> Recipe:
        """The same but for ``training.precision``."""
        return self.model_copy(update={"training": self.training.model_copy(update={"precision": precision})})


def load_recipe(name_or_file: str = DEFAULT_RECIPE, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name or any by path, then apply ``KEY=VALUE`` overrides (``model.embed_dim=64``).

    Raises:
        ValueError: no such recipe, an unknown key, a bad value; names file or option, key, and the nearest known key.
    """
    path = _recipe_path(name_or_file)
    try:
        values = parse_yaml(read_limited(path, MAX_YAML_BYTES), f"recipe {path}")
    except OSError as error:
        raise ValueError(f"recipe {path} can't be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must be a mapping of sections such as model: and training:")
    values.setdefault("name", path.stem)
    recipe = parse_recipe(values, origin=str(path))
    if not overrides:
        return recipe
    changed = recipe.model_dump(mode="json")
    for override in overrides:
        _apply_override(changed, override)
    return parse_recipe(changed, origin="--set " + " --set ".join(overrides))


def check_dataset_weights(weights: Mapping[str, float], datasets: Collection[str]) -> None:
    """Check that each weight is of a data set at hand, or of one that a shipped recipe (``paper``) weighs.

    Raises:
        ValueError: one is of neither; names those at hand, and the nearest.
    """
    shipped = [load_recipe(file.stem).data.dataset_weights for file in RECIPES_FOLDER.glob("*.yaml")]
    known = {*datasets, *(name for of_recipe in shipped for name in of_recipe)}
    if unknown := [name for name in weights if name not in known]:
        raise ValueError(
            f"data.dataset_weights: no data set is called {unknown[0]}; there are {', '.join(datasets)}"
            f"{_nearest(unknown[0], list(datasets))}"
        )


def parse_recipe(values: Mapping[str, Any], origin: str) -> Recipe:
    """Check a mapping against the settings; ``origin`` names it in errors.

    Raises:
        ValueError: as ``load_recipe``.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        messages = [_explain(dict(problem)) for problem in problems[:MAX_PROBLEMS]]
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise ValueError(f"{origin}: {one_line('; '.join(messages + more), 2000)}") from None


def _recipe_path(name_or_file: str) -> Path:
    shipped = RECIPES_FOLDER / f"{name_or_file}.yaml"
    if shipped.is_file():
        return shipped
    path = Path(name_or_file)
    if path.is_file():
        return path
    names = sorted(file.stem for file in RECIPES_FOLDER.glob("*.yaml"))
    raise ValueError(
        f"no recipe {name_or_file!r}: neither a file nor one of {', '.join(names)}{_nearest(name_or_file, names)}"
    )


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"--set {override}: write it as KEY=VALUE, for example model.embed_dim=64")
    key = key.strip()
    if key in _sections():
        raise ValueError(f"--set {override}: {key} is a section; set one of its keys by --set {key}.KEY=VALUE")
    *sections, last = key.split(".")
    place: Any = values
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    known = _known_keys()
    free_form = key.startswith("data.dataset_weights.")
    if not isinstance(place, dict) or (key not in known and not free_form):
        raise ValueError(f"--set {override}: unknown key {key}{_nearest(key, known)}")
    try:
        place[last] = parse_yaml(text, "it")
    except ValueError:
        raise ValueError(f"--set {override}: {shown(text)} is not a YAML value") from None
    if isinstance(place[last], str) and (number := _as_float(place[last])) is not None:
        place[last] = number


def _as_float(text: str) -> float | None:
    """YAML reads 1e-3 as a string; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return None


def _known_keys() -> list[str]:
    return ["name", *(f"{name}.{key}" for name, section in _sections().items() for key in section.model_fields)]


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _explain(problem: dict[str, Any]) -> str:
    key = ".".join(short(str(part)) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{_nearest(key, _known_keys() + list(Recipe.model_fields))}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    instead = "" if isinstance(problem["input"], (dict, BaseModel)) else f", not {shown(problem['input'])}"
    return f"{key}: {message}{instead}"


def _nearest(key: str, known: Sequence[str]) -> str:
    by_last_part = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        close = [by_last_part[name] for name in difflib.get_close_matches(key.rpartition(".")[2], by_last_part, n=1)]
    return f"; did you mean {close[0]}?" if close else ""
