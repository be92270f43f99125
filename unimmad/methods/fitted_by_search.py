"""Methods that are fitted in that their level search is.

Letters: T tokens (sample, modality), C_l channels of level l, h x w positions of a level, H x W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from unimmad.methods.level_search import LevelSearch
from unimmad.methods.submodules import in_submodule
from unimmad.model.method import Fitted, Gather, sample_of_token


class FittedBySearch(Fitted):
    """A method that is fitted in that its search is."""

    search: LevelSearch

    @abstractmethod
    def maps_to_search(self, images_TCHW: Tensor) -> list[Tensor]:
        """The teacher's, float32 whatever autocast says: [T, C_l, h, w] each."""

    @property
    def is_fitted(self) -> bool:
        return self.search.is_fitted

    def begin(self, seed: int, adding: bool = False) -> None:
        self.search.begin(seed, adding)

    def collect(
        self,
        images_TCHW: Tensor,
        tokens_per_sample: Sequence[int],
        slot_of_token_T: Tensor,
        classes: Sequence[str],
        keys: Sequence[str],
        views: Sequence[int] | None = None,
    ) -> None:
        samples = sample_of_token(tokens_per_sample, torch.device("cpu")).tolist()
        of_tokens = (
            [classes[sample] for sample in samples],
            slot_of_token_T.tolist(),
            [keys[sample] for sample in samples],
            None if views is None else [views[sample] for sample in samples],
        )
        self.search.add(images_TCHW, self.maps_to_search(images_TCHW), *of_tokens)

    def finish(self, gather: Gather) -> None:
        self.search.finish(gather, self.maps_to_search)

    def forget(self, classes: Sequence[str]) -> None:
        self.search.forget(classes)

    def is_fitted_to(self, class_name: str) -> bool:
        return self.search.banks[0].is_fitted_to(class_name)

    def take_owners(self, made: Fitted) -> None:
        assert isinstance(made, FittedBySearch)
        self.search.take_owners(made.search)

    def leave_out(self, photograph: str) -> AbstractContextManager[None]:
        return self.search.leave_out(photograph)

    def has_others(self, class_name: str) -> bool:
        return self.search.has_others(class_name)

    def describe(self) -> dict[str, Any]:
        return self.search.describe()

    def restore(self, description: Mapping[str, Any]) -> None:
        self.search.restore(description)

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.search.resize(in_submodule(shapes, "search"))
