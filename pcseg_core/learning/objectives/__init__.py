# SPDX-License-Identifier: Apache-2.0
"""Objectives of training: modules with their own heads that give weighted losses by name."""

from __future__ import annotations

from torch import Tensor, nn

from pcseg_core.learning.dataset import Batch
from pcseg_core.models.student import Student, StudentOutput


class Objective(nn.Module):
    """One or more losses. Parameters belong to the objective and are not part of the result."""

    def prepare(self, student: Student) -> None:
        """Change a student before its training starts or resumes."""

    def restore(self, student: Student) -> None:
        """Undo what `prepare` changed, in a trained student."""

    def losses(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """Weighted losses (scalars) by name.

        Args:
            output: of the student for the points of the batch.
            batch: the targets.
        """
        raise NotImplementedError

    def figures(self, output: StudentOutput, batch: Batch) -> dict[str, Tensor]:
        """Further figures (scalars) to log by name; none by default."""
        return {}
