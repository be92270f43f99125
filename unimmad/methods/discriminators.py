"""The discriminators of a search, and which of them judges the distances to which bank.

One is fitted with the banks. Classes that come in later have one of their own, since what one learned from others may
serve them badly.

Letters: t tokens, h x w positions of the finest level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unimmad.methods.discriminator import Discriminator
from unimmad.methods.submodules import in_submodule

NONE = -1
"""In place of a discriminator's number: none judges."""


class Discriminators(nn.ModuleList):
    """None at first, then one or several; they come by ``take_in`` alone, and a slice of it is none of this kind."""

    def __init__(self, levels: int) -> None:
        """For distances of so many levels."""
        super().__init__()
        self.levels = levels
        self.of_bank: list[int] = []
        """The number of the one that judges the distances to each bank, or ``NONE``; of no meaning while there is
        none."""

    def begin(self) -> None:
        """Forget all."""
        del self[:]
        self.of_bank = []

    def take_in(self, banks: int, discriminator: Discriminator | None) -> None:
        """There are ``banks`` banks from now on, of which the last, new ones are judged by this, or by none."""
        old = len(self.of_bank)
        before = self.of_bank if len(self) else [NONE] * old
        self.of_bank = before + [NONE if discriminator is None else len(self)] * (banks - old)
        if discriminator is not None:
            self.append(discriminator)

    def judges(self, number: int) -> bool:
        """Whether one judges the distances to this bank."""
        return len(self) > 0 and self.of_bank[number] != NONE

    def logits(self, levels: Sequence[Tensor], number: int) -> Tensor:
        """What the one that judges says of distances to a bank, [t, h_l, w_l] of each level: float32 [t, h, w]; 0 where
        none does."""
        if not self.judges(number):
            return torch.zeros_like(levels[0])
        logits_thw: Tensor = self[self.of_bank[number]](levels)
        return logits_thw

    def keep(self, numbers: Sequence[int]) -> None:
        """Of the banks only these are left."""
        self.of_bank = [self.of_bank[number] for number in numbers]

    def describe(self) -> dict[str, Any]:
        """See ``Fitted``; where one judges all banks, as in older versions, that is not said."""
        return {"judged_by": list(self.of_bank)} if len(self) and any(self.of_bank) else {}

    def restore(self, description: Mapping[str, Any], banks: int) -> None:
        """See ``Fitted``."""
        of_bank = description.get("judged_by", [0] * banks)
        if not isinstance(of_bank, list) or len(of_bank) != banks or any(type(one) is not int for one in of_bank):
            raise ValueError(f"this describes no level search: judged_by is not one number for each of {banks} banks")
        self.of_bank = of_bank

    def resize(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        """See ``Fitted``; names are those in this module."""
        del self[:]
        while of_file := in_submodule(shapes, str(len(self))):
            discriminator = Discriminator(self.levels).to(device)
            if of_file != {name: tuple(tensor.shape) for name, tensor in discriminator.state_dict().items()}:
                raise ValueError("a discriminator's tensors are not those of the recipe's levels; the file is damaged")
            self.append(discriminator)
        if len(self) and not all(NONE <= one < len(self) for one in self.of_bank):
            raise ValueError(f"banks are judged by other discriminators than the file's {len(self)}")
