"""Reads JSON into dataclasses: the type, the range and the presence of every field are checked."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_record(body: bytes | str, kind: type[T]) -> T:
    """Returns the `kind` that a JSON text holds: a dataclass whose annotations are the schema.

    `Annotated[int, msgspec.Meta(ge=1)]` bounds a number. 1.0 and true are no integers; fields that the dataclass lacks
    are ignored.

    Raises:
        ValueError: no JSON (see `read_json`), a field that is missing, or of another type or range, with its place:
            `$.clip.frames`.
    """
    return as_record(read_json(body), kind)


def read_json(body: bytes | str) -> Any:
    """Returns JSON values; numbers are finite and no object has a name twice.

    Raises:
        ValueError: another text, in one sentence.
    """
    try:
        return json.loads(
            body, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {_one_line(error)}") from None


def as_record(body: Any, kind: type[T]) -> T:
    """Returns the `kind` that JSON values, already read, hold; raises as `read_record`."""
    import msgspec

    return _checked(lambda: msgspec.convert(body, type=kind, dec_hook=_other))


def read_large_record(body: bytes, kind: type[T]) -> T:
    """Returns what `read_record` does, in a sixth of its time; of a name that an object has twice the last one counts.

    For text whose hash was checked.
    """
    import msgspec

    with many_objects():
        return _checked(lambda: msgspec.json.decode(body, type=kind, dec_hook=_other))


@contextmanager
def many_objects() -> Iterator[None]:
    """Pauses the search for circular garbage, which takes more than half of the time in which many objects are made."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


def _checked(read: Callable[[], T]) -> T:
    import msgspec

    try:
        return read()
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ValueError(_one_line(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _other(kind: Any, value: Any) -> Any:
    """Makes what JSON has no type for: paths."""
    if isinstance(kind, type) and issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected `{getattr(kind, '__name__', kind)}`, got `{type(value).__name__}`")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text[:40]}, which is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object of it has a name twice")
    return made


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
