"""What this machine's processor can run, asked of the operating system: no compiler is needed to know."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable
from pathlib import Path

_OTHER_NAMES = {
    "bmi": "bmi1",
    "lzcnt": "abm",
    "neon": "asimd",
    "dotprod": "asimddp",
    "fullfp16": "fphp",
}
"""LLVM's names of processor features to Linux's, where more than dots and underscores differ."""

_LISTS = ("flags", "Features")
"""The line of /proc/cpuinfo that lists the features, on x86 and on aarch64."""


def _plain(name: str) -> str:
    return name.replace(".", "").replace("_", "")


@functools.cache
def host_features() -> frozenset[str] | None:
    """Return the features that Linux reports, dots and underscores removed; None where it reports none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in _LISTS:
            return frozenset(_plain(word) for word in value.split())
    return None


def missing_features(machine: str, features: Iterable[str]) -> list[str]:
    """Return what code needs and this machine has not.

    Args:
        machine: Kind of processor that the code was built on, as `platform.machine` names it.
        features: LLVM's names of what it may use.
    """
    if machine != platform.machine():
        return [machine]
    host = host_features()
    return [] if host is None else [name for name in features if _plain(_OTHER_NAMES.get(name, name)) not in host]


@functools.cache
def device_name() -> str:
    """Return the name of the processor, which measured times belong to."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
