"""All that is used of submitit though it is not part of its public API.

A new version may move it; ``tests/launching/test_private_submitit.py`` says what is then broken.
"""

from __future__ import annotations

import submitit


class ScriptWriter(submitit.SlurmExecutor):
    """Writes the batch script, also on machines without SLURM, where submitit makes no executor."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def script(self) -> str:
        """What would be given to sbatch."""
        return str(self._make_submission_file_text(self._submitit_command_str, "dry-run"))
