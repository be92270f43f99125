"""The evaluation command whose rank 0 dies without a word when two classes are finished. Started by tests."""

import os
import sys

from unimmad.cli.evaluate import main
from unimmad.evaluation.resume import PartialResults

save = PartialResults.save


def save_and_die(self, scored):
    save(self, scored)
    if len(list(self.folder.iterdir())) == 2:
        os._exit(9)


PartialResults.save = save_and_die
sys.exit(main())
