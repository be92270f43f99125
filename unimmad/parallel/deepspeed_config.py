"""Reads a DeepSpeed JSON and joins it with the recipe: DeepSpeed's own keys pass through, ours are taken out.

Our section is ``"unimmad": {"ep_size": N}``. Batch, optimizer and precision keys are the recipe's business and are
refused here, since the same run must give the same numbers on any number of ranks. One may be said here, because it
belongs to the machine: ``"torch_autocast": {"enabled": true, "dtype": "bfloat16"}`` sets ``training.precision`` bf16.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimmad.config import TrainingSettings
from unimmad.serialization.documents import read_json
from unimmad.serialization.text import shown

OUR_SECTION = "unimmad"
SHIPPED_CONFIGS = Path(__file__).parent / "ds_configs"
"""In a checkout a link to the folder of that name."""

# Key of a DeepSpeed JSON -> the setting that decides it here.
_RECIPE_KEYS = {
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.global_batch and training.accumulation",
    "gradient_accumulation_steps": "training.accumulation",
    "gradient_clipping": "training.gradient_clipping",
    "optimizer": "training.optimizer and training.learning_rate",
    "scheduler": "training.schedule",
    "fp16": "training.precision",
    "bf16": "training.precision",
}
_AUTOCAST = "torch_autocast"
_NEED_THE_NORM = ("offload_optimizer", "cpu_offload", "zenflow")
"""Keys of "zero_optimization" with which DeepSpeed insists on the gradient's norm."""
WHOLE_TENSORS = ("stable_adamw",)
"""Optimizers that take a mean over each tensor, of which ZeRO would show them parts."""


@dataclass(frozen=True)
class DeepSpeedSettings:
    """What a DeepSpeed JSON says."""

    passed_on: dict[str, Any]
    """DeepSpeed's own keys."""
    ep_size: int
    zero_stage: int
    bf16: bool = False
    """Whether it asks for ``training.precision`` bf16; otherwise the recipe decides."""


def find_deepspeed_config(name_or_path: str) -> Path:
    """A shipped configuration's file by its name (``ep4``), any other by its path; a file that is there comes first.

    A name has no suffix: ``ep4.json`` that one node lacks must not be another there.
    """
    path = Path(name_or_path)
    shipped = SHIPPED_CONFIGS / f"{name_or_path}.json"
    return shipped if not path.exists() and path.name == name_or_path and shipped.is_file() else path


def default_deepspeed_config(training: TrainingSettings) -> Path:
    """Of one machine: ZeRO 1, or no ZeRO where the optimizer looks at whole tensors."""
    return SHIPPED_CONFIGS / ("zero0.json" if training.optimizer in WHOLE_TENSORS else "ep1.json")


def read_deepspeed_config(path: Path) -> DeepSpeedSettings:
    """Read and check a DeepSpeed JSON.

    Raises:
        ValueError: no such file, no JSON object, a key that the recipe decides, an unknown key of ours, ZeRO 3, an
            autocast other than bf16.
    """
    try:
        values = read_json(path)
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in SHIPPED_CONFIGS.glob("*.json")))
        raise ValueError(
            f"--deepspeed_config {path} can't be read: {error.strerror}; give a file, or one of {names}"
        ) from None
    except ValueError as error:
        raise ValueError(f"--deepspeed_config {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--deepspeed_config {path} must hold a JSON object")
    for key, setting in _RECIPE_KEYS.items():
        if key in values:
            raise ValueError(f"{path}: remove {key!r}; the recipe's {setting} decides it (--set KEY=VALUE)")
    ours = values.pop(OUR_SECTION, {})
    if not isinstance(ours, dict) or set(ours) - {"ep_size"} or type(ours.get("ep_size", 1)) is not int:
        raise ValueError(f'{path}: section "{OUR_SECTION}" takes one key, "ep_size", a whole number; not {shown(ours)}')
    zero = values.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError(
            f'{path}: section "zero_optimization" must be an object such as {{"stage": 1}}, not {shown(zero)}'
        )
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2):
        raise ValueError(
            f"{path}: ZeRO stage {stage} does not work with DeepSpeed's MoE layers; use stage 2, with more ranks or "
            "optimizer offload (zero_optimization.offload_optimizer) where memory is short"
        )
    bf16 = _asks_for_bf16(path, values.pop(_AUTOCAST, {}))
    return DeepSpeedSettings(values, ours.get("ep_size", 1), stage, bf16)


def _asks_for_bf16(path: Path, autocast: Any) -> bool:
    if isinstance(autocast, dict) and not autocast.get("enabled", False):
        return False
    if autocast != {"enabled": True, "dtype": "bfloat16"}:
        raise ValueError(
            f'{path}: section "{_AUTOCAST}" must be {{"enabled": true, "dtype": "bfloat16"}}, not {shown(autocast)}; '
            "which parts stay in fp32 is the model's business"
        )
    return True


def engine_config(settings: DeepSpeedSettings, training: TrainingSettings, world_size: int) -> dict[str, Any]:
    """The JSON that DeepSpeed gets: the file's keys and the recipe's.

    Raises:
        ValueError: the global batch does not divide among the ranks, or ZeRO does not go with the optimizer.
    """
    if settings.zero_stage and training.optimizer in WHOLE_TENSORS:
        raise ValueError(
            f"training.optimizer {training.optimizer} takes a mean over each tensor, ZeRO {settings.zero_stage} cuts "
            "them: use --deepspeed_config zero0, or training.optimizer adamw"
        )
    micro_batch = training.global_batch // training.accumulation
    if micro_batch % world_size:
        unit = world_size * training.accumulation
        below = training.global_batch // unit * unit
        sizes = f"{below} or {below + unit}" if below else f"{unit}"
        raise ValueError(
            f"training.global_batch {training.global_batch} can't be shared by {world_size} ranks in "
            f"{training.accumulation} micro-batches; the nearest sizes that can: {sizes}"
        )
    config = json.loads(json.dumps(settings.passed_on))
    config |= {
        "train_batch_size": training.global_batch,
        "train_micro_batch_size_per_gpu": micro_batch // world_size,
        "gradient_accumulation_steps": training.accumulation,
        # Without ZeRO we clip ourselves: see gradient_norm.py.
        "gradient_clipping": training.gradient_clipping if settings.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    config.setdefault("steps_per_print", 10**9)
    _let_the_host_run_ahead(config)
    return config


def _let_the_host_run_ahead(config: dict[str, Any]) -> None:
    """Leave out what makes the host wait for the device in each step, unless the file asks for it.

    DeepSpeed times every micro-batch, and ZeRO reads a gradient norm back that nobody uses where nothing is clipped.
    """
    config.setdefault("timers", {"throughput": {"enabled": False}})
    zero = config.get("zero_optimization", {})
    if zero.get("stage") and not config["gradient_clipping"] and not any(key in zero for key in _NEED_THE_NORM):
        zero.setdefault("compute_grad_norm", False)
