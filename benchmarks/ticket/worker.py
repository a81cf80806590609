"""One seed in a process of its own, on one thread: the seeds run side by side, one a core.

Example:
    python -m benchmarks.ticket.worker default 16 0 build/ticket/default-16
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.ticket.preset import PRESETS
from benchmarks.ticket.rows import train_seed, write_rows
from fxprune.lottery import Lottery


def main(arguments: Sequence[str]) -> int:
    """Train all arms of one seed.

    Args:
        arguments: Name of the preset, epochs, seed, folder of the experiment; "watched" as a fifth ends the process
            with the one that started it.
    """
    name, epochs, seed, folder, *watched = arguments
    if watched == ["watched"]:
        watch_parent()
    torch.set_num_threads(1)
    preset = PRESETS[name].with_epochs(int(epochs))
    with Lottery(preset.make_task(), preset.make_plan(int(seed)), find_seed_folder(Path(folder), int(seed))) as lottery:
        write_rows(find_rows_file(Path(folder), int(seed)), train_seed(preset, lottery))
    return 0


def watch_parent() -> None:
    """End this process when the one that started it closes its input or ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the other end of the input is closed, which a kill does too; what is not saved by then is lost."""
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin: a thread inside it would stop Python from ending
        pass
    os._exit(1)


def find_seed_folder(folder: Path, seed: int) -> Path:
    """Return the folder of one seed's lottery."""
    return folder / f"seed-{seed}"


def find_rows_file(folder: Path, seed: int) -> Path:
    """Return the file of one seed's rows."""
    return folder / f"seed-{seed}.json"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
