# SPDX-License-Identifier: Apache-2.0
"""From camera teachers to training signals for points.

`observation` observes every sweep once and stores the result; `pixels` and `image_views` make its
parts from images. `labeling` makes labels of the observations of a scene, by `pseudo_labels` or
`consolidation`; `temporal` makes segments that sweeps share. `losses`, `contrast` and `alignment`
are the losses.
"""
