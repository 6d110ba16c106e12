"""Makes the exported program of an artifact, and loads one whose writer is trusted, after a check for pickles.

`torch.export.load` unpickles what it finds: legacy weights, opaque constants, tensors marked as pickled, and sample
inputs that its own safe reader refuses. It also evaluates sizes and guards as Python. `cpr export` writes none of the
former, sample inputs of tensors, and arithmetic. This check is no sandbox: load programs of people you trust.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..reading.records import read_json
from ..reading.zips import read_members

MEMBER = re.compile(
    r"(byteorder|archive_format|archive_version|\.data/(version|serialization_id)|models/model\.json"
    r"|data/(weights|constants)/(weight|tensor)_\d+|data/(weights/model_weights|constants/model_constants)_config\.json"
    r"|data/sample_inputs/model\.pt)"
)
TARGET = re.compile(
    r"torch\.ops\.(aten|higher_order)\.\w+(\.\w+)?|_operator\.(add|sub|mul|floordiv|eq|ne|lt|le|gt|ge)"
)
EXPRESSION = re.compile(
    r"(Symbol\('\w+'(, (positive|integer|nonnegative)=(True|False))*\)|[\d\s()+*/-]|Mod|Max|Min|,)+"
)


GUARD = re.compile(r"(L\['\w+'\]|\[\d+\]|\.size\(\)|[\s\d()+*/%<>=!-]|and|or|not)+")
NAME = re.compile(r"[\w.]*")
MOST_CLIPS = 4096  # the program's free batch size


def program_of(model: nn.Module, example: Sequence[Tensor]) -> bytes:
    """Returns the `torch.export` program of a model, its batch size free, as the bytes of a .pt2 file."""
    batch = torch.export.Dim("clips", min=1, max=MOST_CLIPS)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model, tuple(example), dynamic_shapes=(tuple({0: batch} for _ in example),)
        )
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    return buffer.getvalue()


def load_program(body: bytes) -> Any:
    """Returns the module of a `torch.export` program that calls ATen operators only and holds no pickle.

    Raises:
        ValueError: a member that is a pickle or unknown, an operator of another library, or no program of this torch.
    """
    members = read_members(io.BytesIO(body))
    for name, member in members.items():
        _, _, place = name.partition("/")
        if not MEMBER.fullmatch(place):
            raise ValueError(f"its program holds {name!r}, which can be a pickle that runs code")
        if place.endswith("_config.json"):
            _refuse_pickled(name, read_json(member))
        elif place.endswith("model.json"):
            _refuse_calls(read_json(member))
        elif place.endswith("model.pt"):
            _refuse_code(name, member)
    checked = io.BytesIO()
    with zipfile.ZipFile(
        checked, "w", zipfile.ZIP_STORED
    ) as archive:  # torch reads what was checked, and no more
        for name, member in members.items():
            archive.writestr(name, member)
    checked.seek(0)
    try:
        return torch.export.load(checked).module()
    except Exception as error:  # torch raises many kinds here
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"its program cannot be loaded by torch {torch.__version__}: {reason}") from error


def _refuse_pickled(name: str, body: Any) -> None:
    """Raises `ValueError` where a table of tensors names one that is pickled."""
    config = body.get("config") if isinstance(body, dict) else None
    entries = config.values() if isinstance(config, dict) else [None]
    for entry in entries:
        path = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False or not re.fullmatch(
            r"(weight|tensor)_\d+", str(path)
        ):  # fmt: skip
            raise ValueError(f"its program's {name} names {str(path)[:80]!r}, a pickle, which can run code")


def _refuse_calls(body: Any) -> None:
    """Raises `ValueError` for a call that is no ATen operator, or an expression that is no arithmetic."""
    todo = [body]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            target = value.get("target")
            if target is not None and "inputs" in value and not TARGET.fullmatch(str(target)):
                raise ValueError(f"its program calls {str(target)[:80]!r}, which is no operator of torch")
            for key, pattern in (("expr_str", EXPRESSION), ("name", NAME)):
                if value.get(key) is not None and not pattern.fullmatch(str(value[key])):
                    raise ValueError(
                        f"its program has {key} {str(value[key])[:80]!r}, which is no size and no name"
                    )
            for guard in value.get("guards_code") or ():
                if not GUARD.fullmatch(str(guard)):
                    raise ValueError(
                        f"its program has a guard {str(guard)[:80]!r}, which is no comparison of sizes"
                    )
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _refuse_code(name: str, body: bytes) -> None:
    """Raises `ValueError` where torch's safe reader refuses a pickle."""
    read_members(io.BytesIO(body))
    try:
        torch.load(io.BytesIO(body), weights_only=True)
    except Exception as error:  # torch raises many kinds here
        raise ValueError(
            f"its program's {name} is a pickle with more than tensors, which can run code"
        ) from error
