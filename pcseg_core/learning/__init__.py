# SPDX-License-Identifier: Apache-2.0
"""Training. Start with `distill.distill`, then `pretrain.pretrain` and `zero_shot.zero_shot`.

A sweep is read as a `Sample`, observed as an `Observation`, labeled as a `TrainingSweep` (except
for pretraining, which has no labels), and trained on in a `Batch`. A `Recipe` decides the
objectives; `module.TrainingModule` trains a student on the sum of their losses. `finetune` trains
on true labels, `probe` measures a frozen network.
"""
