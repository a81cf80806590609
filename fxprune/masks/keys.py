"""Which key of a file or module holds the mask of which parameter: one row a format."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]


def _row(pattern: str, name: Callable[[re.Match[str]], str]) -> Rule:
    return re.compile(pattern), name


KEYS: tuple[tuple[str, Rule], ...] = (
    ("NVIDIA apex ASP", _row(r"((?:.+\.)?)__(\w+?)_mma_mask", lambda m: m[1] + m[2])),
    ("ModelOpt", _row(r"((?:.+\.)?)_(weight|bias)_mask", lambda m: m[1] + m[2])),
    ("NNCF", _row(r"(?:.+\.)?post_hooks\.(.+?)__\d+\.\d+\.binary_mask", lambda m: m[1].replace(":", "."))),
    ("open_lth", _row(r"(?:.+\.)?mask_(\w+___\w+)", lambda m: m[1].replace("___", "."))),
    ("old SparseML", _row(r"(.+)\.sparsity_mask", lambda m: m[1])),
    ("torch.ao.pruning", _row(r"((?:.+\.)?)parametrizations\.(\w+)\.\d+\.mask", lambda m: m[1] + m[2])),
    ("torch.nn.utils.prune", _row(r"((?:.+\.)?\w*(?:weight|bias))_mask", lambda m: m[1])),
)
"""(format, (pattern of the whole key, how it names the parameter)); the first that matches wins."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put before every key: DistributedDataParallel, torch.compile, Lightning and others."""

MOST_PREFIXES = 3
"""Prefixes taken off one key; wrappers are rarely nested deeper."""


def find_parameter(key: str, keys: Collection[str]) -> str | None:
    """Return the parameter whose mask a key holds, or None for a key of no known format.

    Networks have buffers of their own called `mask` or `attn_mask`. So `M.mask` (SparseML) counts only beside
    `M.weight` or among nothing but masks, and `name_mask` (torch.nn.utils.prune) of a parameter that is no weight or
    bias only beside `name_orig`.

    Args:
        key: A key of the source.
        keys: All its keys.
    """
    for _, (pattern, name) in KEYS:
        match = pattern.fullmatch(key)
        if match:
            return name(match)
    if key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in keys:
        return key.removesuffix("_mask")
    owner = key.removesuffix(".mask")
    if owner != key and (f"{owner}.weight" in keys or all(other.endswith(".mask") for other in keys)):
        return f"{owner}.weight"
    return None


def strip_prefixes(names: list[str], known: set[str] | None) -> dict[str, str]:
    """Return each name without what wrappers put before it.

    Args:
        names: Names as they stand in the source.
        known: Names of the model's parameters, or None if there is no model. With a model, what comes off has to lead
            to a name that it has; without, only a known prefix that every name carries comes off.
    """
    if known is None:
        return dict(zip(names, _strip_common(names), strict=True))
    attribute = {name.partition(".")[0] for name in names}
    extra = tuple(f"{name}." for name in attribute) if len(attribute) == 1 else ()
    return {name: _strip_to_known(name, known, (*PREFIXES, *extra)) for name in names}


def _strip_common(names: list[str]) -> list[str]:
    for _ in range(MOST_PREFIXES):
        prefix = next((item for item in PREFIXES if names and all(name.startswith(item) for name in names)), None)
        if prefix is None:
            break
        names = [name.removeprefix(prefix) for name in names]
    return names


def _strip_to_known(name: str, known: set[str], prefixes: tuple[str, ...]) -> str:
    """Take prefixes off until the model has the name; a name that leads nowhere is returned as it was."""
    candidates = [name]
    for _ in range(MOST_PREFIXES):
        for candidate in candidates:
            if candidate in known or f"{candidate}.weight" in known:
                return candidate
        candidates = [
            item.removeprefix(prefix) for item in candidates for prefix in prefixes if item.startswith(prefix)
        ]
    return next((item for item in candidates if item in known or f"{item}.weight" in known), name)
