# SPDX-License-Identifier: Apache-2.0
"""The models that can be trained, and the pools to train them on. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from rich.text import Text

from kinema_api.catalogue import Entry
from kinema_cli.view.table import Column, pairs, table
from kinema_cli.view.text import Raw, age, money

_MODELS = (
    Column("MODEL"),
    Column("FAMILY", need=3),
    Column("PARAMETERS", need=1, right=True),
    Column("TASKS", need=2),
    Column("DESCRIPTION", need=4, prose=True),
)
_POOLS = (
    Column("POOL"),
    Column("ACCELERATOR"),
    Column("DEVICES", right=True),
    Column("NODES", right=True),
    Column("MEMORY", need=1, right=True),
    Column("DEVICE-HOUR", need=2, right=True),
    Column("SECURITY", need=4),
    Column("AGE", need=5, right=True),
    Column("DESCRIPTION", need=3, prose=True),
)


def models(entries: Iterable[Entry], *, width: int | None = None) -> list[Text]:
    """The catalogue."""
    rows = [
        (
            found.name,
            found.family,
            parameters(found.transformer.parameters),
            ",".join(task.value for task in found.tasks),
            found.description,
        )
        for found in entries
    ]
    return table(_MODELS, rows, width=width)


def parameters(count: int) -> str:
    """A number of parameters: 1.42B."""
    return f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def model(found: Entry) -> list[Text]:
    """One model."""
    dims, vae = found.transformer, found.vae
    return pairs(
        [
            ("model", found.name),
            ("family", found.family),
            ("", ""),
            ("about", found.description),
            ("tasks", ", ".join(task.value for task in found.tasks)),
            ("weights", f"hf://{found.repository}" if found.repository else ""),
            (
                "parameters",
                f"{parameters(dims.parameters)}: {dims.layers} blocks of width {dims.hidden}, {dims.heads} heads",
            ),
            ("clips", f"frames {vae.temporal}n+1, height and width in multiples of {found.stride}"),
            ("caption", f"{found.text_length} tokens"),
        ]
    )


def pools(found: Iterable[Raw], *, now: datetime, width: int | None = None) -> list[Text]:
    """Pools as a table."""
    rows = []
    for pool in found:
        spec, prices = pool.get("spec") or {}, (pool.get("spec") or {}).get("prices")
        rows.append(
            (
                pool["metadata"]["name"],
                spec.get("accelerator"),
                spec.get("devicesPerNode"),
                spec.get("nodes"),
                spec.get("deviceMemory") or "-",
                money(prices["deviceHour"], prices.get("currency", "USD")) if prices else "-",
                spec.get("podSecurity") or "restricted",
                age(pool["metadata"].get("creationTimestamp"), now),
                spec.get("description"),
            )
        )
    return table(_POOLS, rows, width=width)
