"""What a model was trained on: datasets, their modalities, classes. Decides which input slot an image goes to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unimmad.data.index import DatasetEntry, Index, Modality, rois_of
from unimmad.data.joined_slots import joined_by_name
from unimmad.data.roi import Rois, given_rois
from unimmad.serialization.text import listed

MOST_NAMES = 10
"""Classes that a message lists."""


@dataclass(frozen=True)
class Match:
    """What an image or a set of images was recognised as."""

    modalities: tuple[Modality, ...]
    """In slot order."""
    class_name: str | None
    """``DATASET/CLASS``; None where the class is not one that the model was trained on."""
    missing: tuple[str, ...] = ()
    """Modalities of the dataset that were not given."""


@dataclass(frozen=True)
class Catalogue:
    """Datasets by name, and the classes as ``DATASET/CLASS``."""

    datasets: dict[str, DatasetEntry]
    classes: tuple[str, ...]
    given_rois: Rois | None = None
    """Regions of interest in place of the datasets'."""

    @classmethod
    def of_indexes(cls, indexes: Iterable[Index], known: Mapping[str, DatasetEntry] | None = None) -> Catalogue:
        """``known``: datasets that the model was trained on, whose slots decide.

        Raises:
            ValueError: as ``joined_by_name``.
        """
        datasets: dict[str, DatasetEntry] = {}
        classes: dict[str, None] = {}
        for index in indexes:
            datasets.update(index.datasets)
            classes.update(dict.fromkeys(f"{sample.dataset}/{sample.class_name}" for sample in index.samples))
        return cls(joined_by_name(datasets, known), tuple(classes))

    def with_classes(self, added: Mapping[str, DatasetEntry]) -> Catalogue:
        """With classes added after training: ``DATASET/CLASS`` and its modalities; a known dataset keeps its own, a new
        one has those of all its classes."""
        datasets: dict[str, DatasetEntry] = {}
        for name, entry in added.items():
            dataset = name.partition("/")[0]
            of_all = {one.name: one for one in (*datasets.get(dataset, entry).modalities, *entry.modalities)}
            ordered = tuple(sorted(of_all.values(), key=lambda modality: modality.slot))
            datasets[dataset] = entry.model_copy(update={"modalities": ordered})
        return replace(self, datasets=datasets | self.datasets, classes=tuple(dict.fromkeys([*self.classes, *added])))

    @property
    def rois(self) -> Rois:
        """Where to look, by class."""
        return rois_of(self.datasets) if self.given_rois is None else self.given_rois

    def with_rois(self, path: Path) -> Catalogue:
        """With the regions of interest in ``path``, see ``data.roi.given_rois``.

        Raises:
            ValueError: they can't be read, or are of no class.
        """
        return replace(self, given_rois=given_rois(path, self.classes))

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Of all datasets, each name once."""
        return tuple(dict.fromkeys(modality.name for entry in self.datasets.values() for modality in entry.modalities))

    def classes_in_words(self, given: str | None) -> str:
        """For messages where a class is to be named: those of ``DATASET/`` where that is given, else all."""
        of_dataset = [name for name in self.classes if given and name.startswith(given)]
        return f"one of {listed(of_dataset or self.classes, MOST_NAMES)}"

    def match(self, names: Sequence[str] | None, class_name: str | None = None) -> Match:
        """Find the modalities that images go by.

        Args:
            names: modality names; None for a single image that was given without one.
            class_name: ``CLASS``, ``DATASET/CLASS``, or one that the model does not know (``DATASET/`` before it tells
                the dataset whose modalities its images have).

        Raises:
            ValueError: a modality that is not known, or images that may be of several datasets.
        """
        known_class, dataset = self._find_class(class_name)
        candidates = [dataset] if dataset is not None else list(self.datasets)
        entry = self._only(candidates) if names is None else self._with_names(candidates, names)
        chosen = [modality for modality in entry.modalities if names is None or modality.name in names]
        given = {modality.name for modality in chosen}
        missing = tuple(modality.name for modality in entry.modalities if modality.name not in given)
        ordered = tuple(sorted(chosen, key=lambda modality: modality.slot))
        return Match(ordered, known_class, missing)

    def _find_class(self, given: str | None) -> tuple[str | None, str | None]:
        """The full name of a known class, and the dataset, each None where not known."""
        if given is None:
            return None, None
        found = [name for name in self.classes if given in (name, name.partition("/")[2])]
        if len(found) > 1:
            raise ValueError(f"class {given} is in several datasets; say which: {', '.join(found)}")
        full = found[0] if found else given
        dataset, separator, _ = full.partition("/")
        return found[0] if found else None, dataset if separator and dataset in self.datasets else None

    def _only(self, candidates: Sequence[str]) -> DatasetEntry:
        """For an image without a modality's name: the datasets of one modality, if they mean the same by it."""
        alone = [name for name in candidates if len(self.datasets[name].modalities) == 1]
        if not alone:
            sets = "; ".join(f"{name}: {', '.join(_names(self.datasets[name]))}" for name in candidates)
            raise ValueError(
                "an image without a modality's name is not enough here: give a folder with one folder a modality, "
                f"or --modality NAME=FILE for each. Known are: {sets}"
            )
        return self._agreed(alone, None)

    def _with_names(self, candidates: Sequence[str], names: Sequence[str]) -> DatasetEntry:
        known = dict.fromkeys(name for dataset in candidates for name in _names(self.datasets[dataset]))
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ValueError(f"modality {', '.join(unknown) or '(none)'} is not known; known are {', '.join(known)}")
        having = [dataset for dataset in candidates if set(names) <= set(_names(self.datasets[dataset]))]
        if not having:
            raise ValueError(f"no dataset has all of the modalities {', '.join(names)}; give one sample's images only")
        exact = [dataset for dataset in having if set(names) == set(_names(self.datasets[dataset]))]
        return self._agreed(exact or having, names)

    def _agreed(self, candidates: Sequence[str], names: Sequence[str] | None) -> DatasetEntry:
        meanings = {
            tuple(modality for modality in self.datasets[dataset].modalities if names is None or modality.name in names)
            for dataset in candidates
        }
        if len(meanings) > 1:
            raise ValueError(
                f"the datasets {', '.join(candidates)} differ in what these images may be; say one of them with "
                f"--class, for example --class {candidates[0]}/NAME"
            )
        return self.datasets[candidates[0]]


def nearest_name(given: str, known: Sequence[str]) -> str:
    """For messages about a name that is not known: the one that is like it in any case of letters, with or without its
    dataset, and those that are known."""
    names = {name.lower(): name for name in known} | {name.partition("/")[2].lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), names, n=1)
    all_names = f"nown are {listed(known, MOST_NAMES)}"
    return f"did you mean {names[near[0]]}? K{all_names}" if near else f"k{all_names}"


def _names(entry: DatasetEntry) -> list[str]:
    return [modality.name for modality in entry.modalities]
