"""Reads the weights that the paper's authors released.

A released checkpoint is a folder with ``model_1.safetensors``-like files of the general multimodal encoder (encoder and
compression), the input embedding and the C-MoE levels. Its tensor names differ from ours; this module knows both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unimmad.model.backbone import read_state_dict
from unimmad.model.finite import check_finite
from unimmad.model.unimmad import UniMMAD

FILES = {
    "model.safetensors": "general_multimodal_encoder",
    "model_1.safetensors": "input_embedding",
    "model_2.safetensors": "c_moes",
}

_UNUSED = re.compile(r"(\.layer4\.|num_batches_tracked$|\.conv_out_second\.|\.prior_head\.|\.model\.fc\.)")

# Released name (regular expression) -> our name. The first rule that matches the start of a name renames it.
_RULES: tuple[tuple[str, str], ...] = (
    (r"teacher\.model\.", r"teacher.network."),
    (r"general_multimodal_encoder\.0\.model\.", r"encoder.network."),
    (
        r"general_multimodal_encoder\.1\.decoder\.layer(\d)\.(\d+)\.upsample\.",
        r"compression.decoder.stages.{0}-1.{1}.skip.",
    ),
    (
        r"general_multimodal_encoder\.1\.decoder\.layer(\d)\.(\d+)\.bn(\d)\.",
        r"compression.decoder.stages.{0}-1.{1}.norm{2}.",
    ),
    (
        r"general_multimodal_encoder\.1\.decoder\.layer(\d)\.(\d+)\.conv(\d)\.",
        r"compression.decoder.stages.{0}-1.{1}.conv{2}.",
    ),
    (r"general_multimodal_encoder\.1\.conv_x(\d)\.0\.conv(\d)\.", r"compression.to_stride_8.{0}-1.conv{1}."),
    (r"general_multimodal_encoder\.1\.conv_x(\d)\.0\.bn(\d)\.", r"compression.to_stride_8.{0}-1.norm{1}."),
    (
        r"general_multimodal_encoder\.1\.conv_x(\d)\.0\.(?:downsample|upsample)\.",
        r"compression.to_stride_8.{0}-1.skip.",
    ),
    (
        r"general_multimodal_encoder\.1\.bn([135])\.b(\d)\.dw\.",
        r"compression.inner.{0}/2.branches.{1}-1.depthwise.",
    ),
    (
        r"general_multimodal_encoder\.1\.bn([135])\.b(\d)\.pw\.",
        r"compression.inner.{0}/2.branches.{1}-1.pointwise.0.",
    ),
    (
        r"general_multimodal_encoder\.1\.bn([135])\.b(\d)\.na\.0\.",
        r"compression.inner.{0}/2.branches.{1}-1.pointwise.1.",
    ),
    (r"general_multimodal_encoder\.1\.bn([135])\.post\.0\.", r"compression.inner.{0}/2.join.0."),
    (r"general_multimodal_encoder\.1\.bn([135])\.post\.1\.0\.", r"compression.inner.{0}/2.join.1."),
    (r"general_multimodal_encoder\.1\.out_bn3\.proj\.0\.", r"compression.outer.0.0."),
    (r"general_multimodal_encoder\.1\.out_bn3\.proj\.1\.0\.", r"compression.outer.0.1."),
    (r"general_multimodal_encoder\.1\.out_bn3\.head\.0\.", r"compression.outer.1."),
    (r"general_multimodal_encoder\.1\.out_bn3\.head\.1\.0\.", r"compression.outer.2."),
    (r"general_multimodal_encoder\.1\.final\.(\d)\.", r"compression.heads.{0}."),
    (r"input_embedding\.input_embedding$", r"input_embedding.embedding_CHW"),
    (r"input_embedding\.(stem|shortcut)\.", r"input_embedding.{0}."),
    (r"c_moes\.(\d)\.conv_share\.0\.", r"levels.{0}.key.0."),
    (r"c_moes\.(\d)\.conv_share\.1\.0\.", r"levels.{0}.key.1."),
    (r"c_moes\.(\d)\.conv_prior\.0\.", r"levels.{0}.query.0."),
    (r"c_moes\.(\d)\.conv_prior\.1\.0\.", r"levels.{0}.query.1."),
    (r"c_moes\.(\d)\.conv_cond\.0\.0\.", r"levels.{0}.condition.join."),
    (r"c_moes\.(\d)\.conv_cond\.0\.1\.", r"levels.{0}.condition.batch_norm."),
    (r"c_moes\.(\d)\.conv_cond\.1\.0\.", r"levels.{0}.condition.group_norm."),
    (r"c_moes\.(\d)\.conv_cond\.2\.", r"levels.{0}.condition.mix.0."),
    (r"c_moes\.(\d)\.conv_cond\.3\.0\.", r"levels.{0}.condition.mix.1."),
    (r"c_moes\.(\d)\.MoEs\.(\d)\.soft_expert$", r"levels.{0}.branches.{1}.fixed_EEkk"),
    (r"c_moes\.(\d)\.MoEs\.(\d)\.experts$", r"levels.{0}.branches.{1}.routed.leaders.logits_LNE"),
    (r"c_moes\.(\d)\.MoEs\.(\d)\.gate\.gate\.", r"levels.{0}.branches.{1}.routed.gate.linear."),
    (r"c_moes\.(\d)\.MoEs\.(\d)\.pre\.0\.", r"levels.{0}.branches.{1}.pre.0."),
    (r"c_moes\.(\d)\.MoEs\.(\d)\.pre\.1\.0\.", r"levels.{0}.branches.{1}.pre.1."),
    (r"c_moes\.(\d)\.MoEs\.(\d)\.post\.0\.", r"levels.{0}.branches.{1}.post."),
    (r"c_moes\.(\d)\.MoEs\.(\d)\.post\.1\.0\.", r"levels.{0}.branches.{1}.norm."),
    (r"c_moes\.(\d)\.expert_bases\.(\d)$", r"levels.{0}.branches.{1}.bank.kernels_GNEEkk"),
    (r"c_moes\.(\d)\.conv_out_first\.0\.", r"levels.{0}.out.0."),
    (r"c_moes\.(\d)\.conv_out_first\.1\.0\.", r"levels.{0}.out.1."),
)


@dataclass(frozen=True)
class Translation:
    """Released tensors under our names, and the released names that have no use here."""

    state: dict[str, Tensor]
    dropped: tuple[str, ...]

    def dropped_by_part(self) -> dict[str, int]:
        """How many dropped tensors belong to each unused part, such as ``layer4``."""
        matches = (_UNUSED.search(name) for name in self.dropped)
        return dict(sorted(Counter(match[0].strip(".") for match in matches if match).items()))


def our_name(released: str) -> str | None:
    """Our name of a released tensor; None where it has no use here.

    Raises:
        ValueError: a name that no released checkpoint has.
    """
    if _UNUSED.search(released):
        return None
    for pattern, replacement in _RULES:
        match = re.match(pattern, released)
        if match:
            return _fill(replacement, match.groups()) + released[match.end() :]
    raise ValueError(f"{released} is not a tensor of a released UniMMAD checkpoint")


def translate(released: Mapping[str, Tensor]) -> Translation:
    """Rename every tensor; banks get the leading dimension that ours have.

    Raises:
        ValueError: as ``our_name``, or two tensors for one of ours.
    """
    state: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in released.items():
        ours = our_name(name)
        if ours is None:
            dropped.append(name)
        elif ours in state:
            raise ValueError(f"{name} is a second tensor for {ours}")
        else:
            state[ours] = tensor[None] if ours.endswith("bank.kernels_GNEEkk") else tensor
    return Translation(state, tuple(dropped))


def read_released(folder: Path) -> Translation:
    """Read the three files of a released checkpoint folder.

    Raises:
        ValueError: a file is missing, can't be read, or holds other tensors.
    """
    released: dict[str, Tensor] = {}
    for file, prefix in FILES.items():
        if not (folder / file).is_file():
            raise ValueError(f"{folder / file} does not exist; a released checkpoint folder holds {', '.join(FILES)}")
        tensors = read_state_dict(folder / file)
        released |= {f"{prefix}.{name.removeprefix('module.')}": tensor for name, tensor in tensors.items()}
    return translate(released)


def load_released(model: UniMMAD, translation: Translation) -> None:
    """Put a translated checkpoint into ``model``; the teacher stays as it is where the checkpoint has none.

    Raises:
        ValueError: another image size, other sizes of the model, a tensor missing, or one with values that are NaN
            or infinite; each is named.
    """
    embedding = translation.state.get("input_embedding.embedding_CHW")
    size = model.settings.image_size
    if embedding is not None and embedding.dim() == 3 and embedding.shape[-1] != size:
        raise ValueError(
            f"the checkpoint was trained at image size {embedding.shape[-1]} and the recipe says {size}: its input "
            f"embedding fits no other; convert with --set model.image_size={embedding.shape[-1]}"
        )
    wanted = model.state_dict()
    _check_names(translation.state, wanted)
    for name, tensor in translation.state.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{name} is {list(tensor.shape)} in the checkpoint and {list(wanted[name].shape)} in the recipe"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype} in the checkpoint, where real numbers were due")
    check_finite(translation.state, "the released checkpoint")
    model.load_state_dict(translation.state, strict=False)


def _check_names(given: Iterable[str], wanted: Iterable[str]) -> None:
    given, wanted = set(given), set(wanted)
    missing = sorted(
        n for n in wanted - given if not n.startswith("teacher.") and not n.endswith("num_batches_tracked")
    )
    if missing:
        raise ValueError(f"the checkpoint lacks {len(missing)} tensors of the recipe's model, first {missing[0]}")
    surplus = sorted(given - wanted)
    if surplus:
        raise ValueError(f"the checkpoint has {len(surplus)} tensors that the recipe's model lacks, first {surplus[0]}")


def _fill(replacement: str, groups: tuple[str, ...]) -> str:
    """Put a match's numbers in place: ``{0}`` as it is, ``{0}-1`` from 0, ``{0}/2`` for kernel sizes 1, 3, 5."""

    def number(match: re.Match[str]) -> str:
        value = groups[int(match[1])]
        if match[2] == "-1":
            return str(int(value) - 1)
        return str(int(value) // 2) if match[2] == "/2" else value

    return re.sub(r"\{(\d)\}(-1|/2)?", number, replacement)
