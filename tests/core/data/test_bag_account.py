# SPDX-License-Identifier: Apache-2.0
"""The account of a bag: every message is used, left out for a reason, or failed."""

import json
import subprocess
import sys

import pytest
from camera_bags import FRONT, camera_bag, image_message
from recordings import PERIOD, START, bag, lidar_pose

from pcseg_core.data import messages
from pcseg_core.data.account import Account, account, grouped
from pcseg_core.data.bag import BagRecording
from pcseg_core.data.bag_reader import IMAGE
from pcseg_core.data.bag_writer import BagWriter
from pcseg_core.errors import InputError


def test_the_exit_code_is_the_verdict_and_the_account_is_printed(tmp_path) -> None:
    good, bad = bag(tmp_path / "good", sweeps=4), bag(tmp_path / "bad", camera=False)
    for path, code in ((good, 0), (bad, 1)):
        command = [sys.executable, "-m", "pcseg_core.cli", "bag", "info", str(path)]
        out = tmp_path / "report.json"
        done = subprocess.run([*command, "--json", out], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        found = json.loads(out.read_text())["account"]
        assert found["/points"]["used"] == found["/points"]["held"]
        assert f"/points: {found['/points']['held']} of" in done.stdout


def test_every_message_of_a_bag_is_accounted_for(tmp_path) -> None:
    def extra(writer: BagWriter, i: int) -> None:
        for part in (1, 2):  # images at three times the rate of the sweeps
            stamp = START + i * PERIOD + part * PERIOD // 3
            writer.write_message(FRONT, IMAGE, image_message(stamp), stamp)
        writer.write_tf({("odom", "lidar"): lidar_pose(i)}, START + i * PERIOD)
        stamp = START if i == 4 else START + i * PERIOD
        twist = messages.type_store().types["std_msgs/msg/String"](data="hello")
        writer.write_message("/said", "std_msgs/msg/String", twist, stamp)

    entries = BagRecording(camera_bag(tmp_path / "drive", extra=extra)).account.entries()
    assert not any(entry.unexplained for entry in entries.values())
    assert next(iter(entries)) == "/points"
    assert entries[FRONT].left_out == {"not the image nearest to a sweep": 12}
    assert entries["/said"].left_out == {"std_msgs/msg/String is not used": 6}
    assert entries["/tf"].used == entries["/front/camera_info"].used == 6


def test_samples_that_fail_later_move_to_the_failed(tmp_path) -> None:
    recording = BagRecording(camera_bag(tmp_path / "drive"))
    for i in range(2):
        recording.skipped[f"unreadable sample: /points at {i} ns: data has {i} bytes"] += 1
    entry = account(recording).entries()["/points"]
    assert (entry.used, entry.unexplained) == (4, 0)
    assert entry.failed == {"/points at 0 ns: data has 0 bytes": 2}
    assert recording.account.entries()["/points"].used == 6  # the account of the bag is unchanged


def test_reasons_that_differ_in_numbers_are_one() -> None:
    assert grouped({"at 10 ns: 3.5 m": 1, "at 20 ns: 4.5 m": 2, "gone": 1}) == [
        ("at 10 ns: 3.5 m", 3),
        ("gone", 1),
    ]


def test_a_difference_without_a_reason_is_an_error() -> None:
    lost = Account.of({"sweeps": 5}, {"sweeps": 3}, {"sweep that is empty": 1})
    assert lost.unexplained() == {"sweeps": 1} and "1 unexplained" in lost.lines()[0]
    with pytest.raises(InputError, match="holds 5 and 4 were read"):
        lost.check("drive")
