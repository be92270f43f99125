"""What a grown checkpoint forgot: every old class before and after, the new ones, what was trained, and how long."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimmad.config import Recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation.geometry import scoring_geometry
from unimmad.evaluation.run import evaluate_classes
from unimmad.evaluation.scoring import chosen_precision, scoring_form
from unimmad.metrics.metrics import Metrics
from unimmad.model.method import Method
from unimmad.ranks.exchange import Ranks
from unimmad.report.table import Row, Strong, Table
from unimmad.serialization.atomic_write import write_text_aside

FORMAT = 1
"""Of forgetting.json."""
JSON_NAME, TEXT_NAME = "forgetting.json", "forgetting.txt"
"""In a run folder."""
MEASURE = "I-AUROC"
"""By which a class is forgotten."""
SHOWN = (MEASURE, "P-AUROC")


@dataclass(frozen=True)
class Forgetting:
    """Of a growing run."""

    before: Mapping[str, Metrics]
    """Of each class that has test images, by ``DATASET/CLASS``; of new ones where the old checkpoint could score
    them."""
    after: Mapping[str, Metrics]
    """Of each class that has test images."""
    new: tuple[str, ...]
    known: tuple[str, ...]
    """All classes, old and new."""
    trained: int
    """Values that were trained."""
    parameters: int
    """Values in all, the frozen teacher's included."""
    minutes: float
    """Of training."""
    replayed: int = 0
    """Old training images that were seen again."""

    def lost(self, measure: str = MEASURE) -> dict[str, float]:
        """What each old class lost; less than 0 where it gained. Classes without both values are left out."""
        found = {}
        for name, metrics in self.before.items():
            if name in self.new:
                continue
            then, now = metrics[measure], self.after.get(name, {}).get(measure)
            if then is not None and now is not None:
                found[name] = then - now
        return found

    @property
    def unmeasured(self) -> list[str]:
        """Old classes without both values, and new ones without one."""
        lost = self.lost()
        return [
            name
            for name in self.known
            if (self.after.get(name, {}).get(MEASURE) is None if name in self.new else name not in lost)
        ]

    def mean(self, measure: str = MEASURE) -> float | None:
        """Of ``lost``; None where no class is measured."""
        lost = self.lost(measure)
        return statistics.fmean(lost.values()) if lost else None

    def check(self, most: float | None, has_new_leaders: bool = False) -> None:
        """
        Args:
            most: that a class may lose; None: anything.
            has_new_leaders: whether the checkpoint was grown with leaders of its own, which are then no advice.

        Raises:
            ValueError: a class lost more than ``most``, or nobody can say; names all that did.
        """
        if most is None:
            return
        if unknown := [name for name in self.unmeasured if name not in self.new]:
            raise ValueError(
                f"--max-forgetting: nobody can say what {', '.join(unknown)} lost of its {MEASURE}; the checkpoint is "
                "not finished"
            )
        beyond = {name: lost for name, lost in self.lost().items() if lost > most}
        if beyond:
            said = ", ".join(f"{name} {lost:.4f}" for name, lost in sorted(beyond.items(), key=lambda item: -item[1]))
            leaders = "" if has_new_leaders else "with --new-leaders, "
            raise ValueError(
                f"old classes lost more than --max-forgetting {most:g} of their {MEASURE}: {said}; the checkpoint "
                "is not finished: grow again into another --output-dir, with more --replay-fraction, "
                f"{leaders}or in fewer training.steps"
            )

    def table(self) -> Table:
        """A row a class: image and pixel measures before and after, and what the image measure lost."""
        rows: list[Row] = []
        for group in ("old", "new"):
            names = [name for name in self.after if (name in self.new) == (group == "new")]
            rows += [[group, name, *self._cells([name])] for name in names]
            if len(names) > 1:
                rows.append([group, Strong("mean"), *self._cells(names)])
        heads = [name.replace("-AUROC", "") + when for name in SHOWN for when in (" before", " after")]
        caption = f"I: {MEASURE}, P: {SHOWN[1]}, before and after growing; what {MEASURE} lost"
        return Table(["", "class", *heads, "lost"], rows, names=2, caption=caption, notes=tuple(self._notes()))

    def entry(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "format": FORMAT,
            "measure": MEASURE,
            "mean_forgetting": self.mean(),
            "lost": self.lost(),
            "classes": {
                name: {"new": name in self.new, "before": self.before.get(name), "after": self.after.get(name)}
                for name in dict.fromkeys((*self.before, *self.after))
            },
            "unmeasured": self.unmeasured,
            "trained_parameters": self.trained,
            "parameters": self.parameters,
            "replayed_images": self.replayed,
            "minutes": round(self.minutes, 2),
        }

    def write(self, run: Path) -> tuple[Path, Path]:
        """Text and JSON into a run folder."""
        write_text_aside(run / TEXT_NAME, self.table().to_text())
        write_text_aside(run / JSON_NAME, json.dumps(self.entry(), indent=2) + "\n")
        return run / TEXT_NAME, run / JSON_NAME

    def _cells(self, names: Sequence[str]) -> Iterator[str]:
        """The means of some classes; empty where there is none."""
        for measure in SHOWN:
            for of_classes in (self.before, self.after):
                yield _mean([of_classes.get(name, {}).get(measure) for name in names])
        yield _mean([self.lost().get(name) for name in names])

    def _notes(self) -> Iterator[str]:
        share = self.trained / max(1, self.parameters)
        yield f"trained: {self.trained} of {self.parameters} parameters ({share:.2%}), {self.minutes:.1f} minutes"
        yield f"seen again: {self.replayed} old training images"
        if self.unmeasured:
            yield f"not measured for want of test images: {', '.join(self.unmeasured)}"


def class_metrics(
    model: Method, recipe: Recipe, shards: ShardSet, device: torch.device, ranks: Ranks
) -> dict[str, Metrics]:
    """Of every class of the test split, by ``DATASET/CLASS``; on ranks other than 0 nothing. Collective.

    Args:
        model: of a checkpoint.
        recipe: how images are read, scored and measured; the same for all that are compared.
        shards: with test images.
        device: what to compute on.
        ranks: all.

    Raises:
        ValueError: a sample can't be read, or a map is not finite.
        StoppedError: ``ranks.should_stop``.
    """
    if not shards.has("test"):
        return {}
    scored_classes = evaluate_classes(
        scoring_form(model, recipe.evaluation, device),
        shards,
        "test",
        recipe.evaluation,
        device=device,
        workers=recipe.data.workers,
        mask_resize=recipe.evaluation.mask_resize,
        geometry=scoring_geometry(recipe),
        progress=ranks.is_main,
        precision=chosen_precision(None, device),
        on_error=recipe.data.on_error,
        ranks=ranks,
    )
    with closing(scored_classes):
        return {scored.class_name: scored.result.metrics for scored in scored_classes}


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3f}" if known else ""
