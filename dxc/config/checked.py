"""Checks values that come from outside against a typed class. Every error says what, where, and what to do.

A class of values is a subclass of Part. Its fields are the keys, and their types are the checks. checked() makes an
object of it, or raises ConfigError with a line for each value that cannot work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictBool, StrictStr, ValidationError

from dxc.errors import FOLDER_NAME, ConfigError, is_number, is_whole


class Part(BaseModel):
    """A group of checked values, which cannot be changed. Keys that it does not know are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())

    def values(self) -> dict[str, Any]:
        """The values in plain containers, as they were given: what has its default because nobody gave it is not
        there."""
        return self.model_dump(by_alias=True, exclude_unset=True)


P = TypeVar("P", bound=Part)


def checked(kind: type[P], values: Any, place: str = "") -> P:
    """Make a Part of values from outside.

    Args:
        kind: the class.
        values: a mapping in plain containers.
        place: what the keys lie under, such as hardware; '' for the configuration itself.

    Raises:
        ConfigError: with a line for each key that is missing or unknown, and for each value that cannot work.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error, kind, place))) from None


def _lines(error: ValidationError, kind: type[Part], place: str) -> list[str]:
    unknown: dict[str, list[str]] = {}
    lines = []
    for each in error.errors(include_url=False):
        path = _path(each["loc"])
        if each["type"] == "extra_forbidden":
            unknown.setdefault(".".join(path[:-1]), []).append(path[-1])
        else:
            lines.append(f"{_dotted(place, *path)}{_complaint(each)}")
    for inner, keys in unknown.items():
        name = _dotted(place, inner) or "the configuration"
        known = ", ".join(sorted(_keys(kind, inner.split(".") if inner else [])))
        lines.insert(0, f"{name} has no {', '.join(sorted(keys))}; it has {known}")
    return lines


def _complaint(each: Any) -> str:
    """What is wrong with one value, to be read after its name."""
    given = each["input"]
    match each["type"]:
        case "missing":
            return " is missing"
        case "value_error":
            return f"{each['ctx']['error']}"
        case "literal_error":
            return f" must be {each['ctx']['expected'].replace(chr(39), '')}, not {given!r}"
        case "bool_type":
            return f" must be true or false, not {given!r}"
        case "string_type":
            return f" must be a text, not {given!r}"
        case "list_type":
            return f" must be a list, not {given!r}"
        case "model_type" | "dict_type" | "mapping_type":
            return f" must be a section with keys, not {given!r}"
    return f": {each['msg']}, not {given!r}"


def _dotted(*names: str) -> str:
    return ".".join(name for name in names if name)


def _path(steps: Iterable[Any]) -> list[str]:
    """The keys on the way to a value; a place in a list belongs to the key of the list: batches[2]."""
    path: list[str] = []
    for step in steps:
        if isinstance(step, int):
            path[-1] += f"[{step}]"
        elif not ("[" in step or step in _TYPES):
            path.append(step)
    return path


_TYPES = ("str", "int", "float", "bool", "list", "dict")
"""pydantic adds to the path which member of a union it tried: no key of a user's."""


def _keys(kind: Any, path: list[str]) -> Iterable[str]:
    """The keys of a class, or of the class of one of its keys, or of the entries of a list there."""
    for name in path:
        key, is_entry, _ = name.partition("[")
        kind = kind.model_fields[key].annotation
        if is_entry:
            (kind,) = get_args(kind)
    return [field.alias or name for name, field in kind.model_fields.items() if not field.exclude]


def must_be(accepts: Callable[[Any], bool], what: str) -> BeforeValidator:
    """For Annotated: a check whose message is 'KEY must be WHAT, not VALUE'."""

    def check(value: Any) -> Any:
        if not accepts(value):
            raise ValueError(f" must be {what}, not {value!r}")
        return value

    return BeforeValidator(check)


def whole(at_least: int) -> BeforeValidator:
    """For Annotated: a whole number of at least so much."""
    return must_be(lambda value: is_whole(value, at_least), f"a whole number of at least {at_least}")


def one_of(choices: Callable[[], Iterable[str]]) -> BeforeValidator:
    """For Annotated: one of these names. `choices` is called when a value is checked."""

    def check(value: Any) -> Any:
        if value not in (known := list(choices())):
            raise ValueError(f"={value} is unknown; choose one of {', '.join(known)}")
        return value

    return BeforeValidator(check)


def cost_among(costs: Callable[[], Sequence[str]]) -> BeforeValidator:
    """For Annotated: the name of a metric that may be limited. `costs` is called when a name is checked."""

    def check(name: Any) -> Any:
        if name not in costs():
            raise ValueError(f": no such cost; {', '.join(costs())} have limits")
        return name

    return BeforeValidator(check)


def _folder_name(value: Any) -> str:
    if not FOLDER_NAME.fullmatch(str(value)):
        raise ValueError(
            f"={value} names a folder and an MLflow experiment: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return str(value)  # of a study such as 2026


def is_list_of_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


Natural = Annotated[int, whole(0)]
Positive = Annotated[int, whole(1)]
Flag = StrictBool
Text = StrictStr
FolderName = Annotated[str, BeforeValidator(_folder_name)]
Amount = Annotated[
    int | float, must_be(lambda value: is_number(value) and value >= 0, "a number of at least 0")
]
Limit = Annotated[int | float, must_be(lambda value: is_number(value) and value > 0, "a number over 0")]
LimitOrNull = Annotated[
    int | float | None,
    must_be(lambda value: value is None or (is_number(value) and value > 0), "a number over 0, or null"),
]
Names = Annotated[list[str], must_be(is_list_of_texts, "a list of names")]
Precision = Annotated[
    str | int,
    must_be(lambda value: isinstance(value, str | int), "the name of a precision, such as 32-true"),
]
