# SPDX-License-Identifier: Apache-2.0
"""Less memory for the operator's process: without packages that nobody uses, and pages that nobody needs any more."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from types import ModuleType
from typing import Any, cast

_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""M_MMAP_THRESHOLD and M_ARENA_MAX of glibc's malloc.h."""
_LARGE = 128 << 10


def spare() -> None:
    """Prepare the process; call it before anything imports kubernetes or kopf."""
    skip_unused_clients()
    allocator = _allocator()
    if allocator is not None:
        # Buffers of connections are as large as this. Left to itself the limit grows with the first that is freed, and
        # later ones lie in the heap, which then cannot shrink.
        allocator.mallopt(_MMAP_THRESHOLD, _LARGE)
        allocator.mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Return free pages to the system: after a list of everything many are."""
    allocator = _allocator()
    if allocator is not None:
        allocator.malloc_trim(0)


def skip_unused_clients() -> None:
    """Let parts of the package `kubernetes` be imported without all others, which its own imports would load as well.

    Those are a synchronous client and a dynamic one, with requests, urllib3 and oauthlib. kopf takes objects of the
    synchronous client where there is one, and does without.
    """
    if "kubernetes" in sys.modules:
        return
    modules = cast(dict[str, ModuleType | None], sys.modules)
    for name in ("kubernetes", "kubernetes.aio"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        modules[name] = package = importlib.util.module_from_spec(spec)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, package)
    modules["kubernetes.client"] = None


def _allocator() -> Any:
    """The C library; None where it is not glibc."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
