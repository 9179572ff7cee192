# SPDX-License-Identifier: Apache-2.0
"""The base of every model, and the bounded strings and numbers that the resources are made of."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

if TYPE_CHECKING:
    from typing import Self


class Model(BaseModel):
    """A frozen model: camelCase on the wire, snake_case in Python, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    @classmethod
    def stored(cls, data: Any) -> Self:
        """The model of data that another version may have written: unknown fields are left out, not refused."""
        return cls.model_validate(data, extra="ignore")

    def wire(self) -> dict[str, Any]:
        """The model as JSON-ready data with camelCase names, unset optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Word(str, Enum):  # noqa: UP042 - StrEnum needs 3.11
    """An enumeration whose members print as their value, on every Python."""

    def __str__(self) -> str:
        return str(self.value)


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules for the API server, as (rule, message) pairs."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
ModelName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$")]
Uri = Annotated[str, Field(min_length=1, max_length=768, pattern=r"^((pvc|s3|hf|file)://\S+|mock://)$")]
HttpUrl = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$")]
Text = Annotated[str, Field(max_length=4096)]
ShortText = Annotated[str, Field(max_length=256)]
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=253)]
LabelMap = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]
StringMap = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"


def _to_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(_to_text),
    Field(max_length=32, pattern=_QUANTITY),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
            "pattern": _QUANTITY,
        }
    ),
]
QuantityMap = Annotated[dict[str, Quantity], Field(max_length=16)]
