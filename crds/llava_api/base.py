"""The two bases of every type that crosses a process boundary."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Strict(BaseModel):
    """What we write and read ourselves: frozen, camelCase on the wire, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class Lenient(Strict):
    """What another version may have written (status, reports): unknown keys are passed over."""

    model_config = ConfigDict(extra="ignore")
