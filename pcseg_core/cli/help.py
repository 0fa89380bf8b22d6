# SPDX-License-Identifier: Apache-2.0
"""What `--help` shows besides the options: groups of commands, examples, exit codes."""

from __future__ import annotations

GROUPS = (
    ("Look at recordings", ("bag", "calibrate", "view", "images", "demo")),
    (
        "Train without labels",
        ("distill", "pretrain", "zero-shot", "superpixels", "label", "select", "estimate"),
    ),
    ("Train on labels, or go on from published weights", ("finetune", "import")),
    ("Recipes, teachers and their weights", ("recipe", "teacher", "weights")),
    ("Measure", ("evaluate", "robustness", "probe")),
    ("Use", ("segment", "prompt", "words", "quantize", "export", "hub")),
    ("Installation", ("doctor",)),
)
"""Commands by what a user wants; others are listed as "More"."""

EXIT_CODES = """\b
Exit codes:
  0    done
  1    bag info: the bag cannot train a segmenter; else a bug
  2    an input is wrong or missing; the message says what to do
  130  interrupted by Ctrl-C, 143 by SIGTERM; the work is stored, run it again
"""

EXAMPLES = {
    "bag info": ("bag info drive", "bag info drive --json - --picture info.png"),
    "bag from-kitti": ("bag from-kitti 2011_09_26_drive_0005_sync --out drive",),
    "bag simulate": (
        "bag simulate --out drive --seed 3 --town suburb",
        "bag simulate --out shifted --sweeps 20 -o stamp_offset_s=0.05",
    ),
    "bag play": ("bag play drive",),
    "bag record": ("bag record labeled /labeled_points /diagnostics",),
    "calibrate": ("calibrate drive --picture edges.png", "calibrate drive --out rig.yaml"),
    "distill": (
        "distill drive --out runs/first",
        "distill drive1 drive2 --recipe my.yaml --seed 1 --out runs/second",
        "distill drive --teacher-3d runs/large --out runs/small",
        "distill drive1 drive2 --out runs/fleet --ray head:6379",
    ),
    "evaluate": (
        "evaluate runs/first --semantic-kitti DIR --picture report.png",
        "evaluate runs/first --source drive1 --source drive2 --json report.json",
        "evaluate drive --checkpoint runs/first --compare runs/second",
        "evaluate drive --checkpoint runs/first --teacher kitti --json -",
    ),
    "robustness": ("robustness runs/first drive --every 10 --json robustness.json",),
    "images": ("images drive --out images",),
    "superpixels": (
        "superpixels drive --generator slic --out superpixels",
        "superpixels drive --generator sam --weights sam_vit_h.pth --out superpixels",
        "superpixels drive1 drive2 --out superpixels --ray head:6379",
    ),
    "pretrain": ("pretrain drive --recipe pretrain-kitti --out runs/pre",),
    "probe": ("probe runs/pre --fit semantic-kitti:00 --test semantic-kitti:08 --json probe.json",),
    "finetune": ("finetune runs/pre semantic-kitti:00 --out runs/tuned",),
    "import": ("import minkunet_slidr_1gpu.pt --as slidr --out runs/slidr",),
    "zero-shot": (
        "zero-shot town --test other-town --split street_vehicle_pole "
        "--recipe zero-shot-simulated --out runs/zs",
    ),
    "prompt": (
        'prompt runs/words drive --words "vehicle: car, truck" --words "*" --picture p.png',
        "prompt runs/words drive --pictures examples/",
    ),
    "words": ("words runs/words --find tree",),
    "quantize": ("quantize runs/first drive --out runs/int8/checkpoint.safetensors",),
    "label": (
        "label drive --recipe kitti --out labels",
        "label drive1 drive2 --recipe kitti --out labels --ray head:6379",
    ),
    "select": ("select drive --checkpoint runs/first --budget 20 --out chosen.csv",),
    "estimate": ("estimate drive1 drive2 --recipe kitti",),
    "segment": (
        "segment drive --checkpoint runs/first --out labeled",
        "segment semantic-kitti:08 --checkpoint bundled --out labels",
    ),
    "export": (
        "export runs/first --out deploy",
        "export runs/first --precision int8 --calibration drive --out deploy8",
    ),
    "hub push": (
        "hub push runs/first ./shared",
        "hub push runs/first me/street --data-license 'own recordings'",
    ),
    "hub pull": ("hub pull me/street runs/street", "hub pull ./shared runs/street"),
    "view": ("view labeled", "view runs/first --picture labels.png"),
    "demo": ("demo --out demo",),
    "doctor": ("doctor",),
    "recipe list": ("recipe list",),
    "recipe show": ("recipe show kitti > my.yaml",),
    "teacher check": ("teacher check --image street.png --recipe kitti",),
    "weights list": ("weights list",),
    "weights get": ("weights get espnetv2-cityscapes",),
    "weights where": ("weights where espnetv2-cityscapes",),
    "weights add": ("weights add model.pth",),
    "weights convert": ("weights convert FILE --out net.safetensors",),
}
"""Arguments of `pcseg` by command."""


def examples(command: str) -> str:
    """The examples of a command as the end of its help, or nothing."""
    lines = [f"  pcseg {arguments}" for arguments in EXAMPLES.get(command, ())]
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *lines]) if lines else ""
