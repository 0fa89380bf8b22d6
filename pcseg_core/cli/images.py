# SPDX-License-Identifier: Apache-2.0
"""`pcseg images`: write the images of a recording, for programs that make class maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def images(
    source: Annotated[str, typer.Argument(help="Recording: bag, or reader:path.")],
    out: Annotated[Path, typer.Option(help="Folder, new or of other recordings.")],
) -> None:
    """Write the images of a recording as PNG, with a list of them.

    OUT/images.csv identifies every image of OUT/images/ by its pixels. Any program can write a
    class map OUT/maps/NAME.png or NAME.npz for each of them and the class names to OUT/names.txt;
    the teacher {name: folder, path: OUT} then labels recordings with these maps. Interrupted runs
    resume: run the same command again.
    """
    from pcseg_core.cli.superpixels import report
    from pcseg_core.data import open_recording
    from pcseg_core.progress import bar
    from pcseg_core.vision.image_list import export_images

    recording = open_recording(source)
    with bar(f"images of {recording.name}") as progress:
        counts = export_images(recording, out, progress)
    report(counts, out)
