"""The kinds of values that settings are made of. Each is checked where it is read, and says in a line what it should have been."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from forge import units
from forge.errors import ConfigError


def _readable(read: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Takes what `read` can read, and leaves it as it is."""

    def same(value: Any) -> Any:
        try:
            read(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value

    return same


def _length(value: Any) -> Any:
    number, unit = units.parse(value)
    if number == 0 or unit == "%":
        raise ValueError(f"{value!r}: a run's length is steps, tokens or epochs, and above 0")
    return value


def _cadence(value: Any) -> Any:
    if units.parse(value)[0] == 0:
        raise ValueError(f"{value!r}: has to be above 0; for once at the end write 100%")
    return value


def _model_name(value: str) -> str:
    """One that MLflow's registry takes and that a folder can bear, with a recipe behind it."""
    if not value or value[0] in ".~" or re.search(r"[/:\\\x00-\x1f\x7f]", value) or len(value.encode("utf-8", "replace")) > 200:
        raise ValueError(f"{value[:80]!r}: a model's name has no . or ~ in front, no / : \\ or control character, and at most 200 bytes")
    return value


def _memory(value: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)? ?(GB|%)", value):
        raise ValueError(f"{value!r}: write what MLX may use, such as '12 GB', or a share of the machine's, such as '80%'")
    return value


RECIPE = re.compile(
    r"(?:(?P<plain>\d)bit|mixed_(?P<mixed>2_6|3_4|3_6|4_6)|dynamic_(?P<dynamic>\d_\d)|(?P<method>awq|dwq|gptq)(?:-(?P<bits>\d)bit)?)(?:-g(?P<group>32|64|128))?"
)
BITS = {2, 3, 4, 5, 6, 8}  # that MLX packs
_BITS_OF = {"gptq": {2, 4, 8}, "dwq": BITS - {8}}  # that mlx-lm's GPTQ packs, and whose scales its DWQ trains


def _recipe(value: str) -> str:
    found = RECIPE.fullmatch(value)
    if not found:
        raise ValueError(f"{value!r}: write 4bit, 4bit-g32, mixed_3_6, dynamic_4_6, awq, dwq-3bit, gptq-4bit-g64 or the like")
    bits = {int(bits) for bits in re.findall(r"\d", (found["plain"] or found["bits"] or found["dynamic"] or ""))}
    valid = _BITS_OF.get(found["method"] or "", BITS)
    if not bits <= valid:
        raise ValueError(f"{value!r}: bits are {', '.join(map(str, sorted(valid)))}")
    if found["dynamic"] and not found["dynamic"][0] < found["dynamic"][2]:
        raise ValueError(f"{value!r}: write the fewer bits first, as in dynamic_4_6")
    return value


def _recipes(value: Any) -> Any:
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if len(set(map(str, listed))) < len(listed):
        raise ValueError(f"{value}: the same recipe twice")
    return listed


Duration = Annotated[str, BeforeValidator(_readable(units.parse))]
Time = Annotated[str, AfterValidator(_readable(units.seconds))]
Cadence = Annotated[Duration, AfterValidator(_cadence)]
Length = Annotated[Duration, AfterValidator(_length)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
Role = Literal["norm", "bias", "embedding", "head", "lora_a", "lora_b", "matrix"]
ModelName = Annotated[str, AfterValidator(_model_name)]
MemoryLimit = Annotated[str, AfterValidator(_memory)]
Recipes = Annotated[list[Annotated[str, AfterValidator(_recipe)]], BeforeValidator(_recipes)]
OverLength = Literal["error", "drop", "split", "truncate_left", "truncate_right"]
Mask = Literal["all", "assistant", "last"]
