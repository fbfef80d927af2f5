"""The page of all training parameters, generated from the code."""

from __future__ import annotations

import ast
import inspect
from dataclasses import MISSING, fields
from enum import StrEnum

from domain.parameters import TrainingParameters
from entrypoints.options import option_of

_HEAD = """\
# Training parameters

Generated from `domain/parameters.py` by `python -m tools.docs.documents`; a test compares both.
Each is an option of `train` and `submit`, and a key of a task's `data.parameters`. An unknown key
is ignored with a warning; a value out of range is rejected with its name and a remedy. The report
and the style's metadata list the values that a run used.

| parameter | option | default | meaning |
| --- | --- | --- | --- |
"""
_DEPENDENT = {
    "epochs": "by image count: 700 - 20 n, from 100 to 500",
    "resolution": "the base model's",
}


def parameters_page() -> str:
    """The page as Markdown."""
    texts = meanings()
    rows = []
    for field in fields(TrainingParameters):
        default = _DEPENDENT.get(field.name) or _shown(field.default)
        meaning = texts[field.name].replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{option_of(field.name)}` | {default} | {meaning} |")
    return _HEAD + "\n".join(rows) + "\n"


def meanings() -> dict[str, str]:
    """Docstring of each parameter's field, on one line."""
    (declared,) = ast.parse(inspect.getsource(TrainingParameters)).body
    assert isinstance(declared, ast.ClassDef)
    found = {}
    for field, below in zip(declared.body, declared.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.replace("``", "`").split())
    return found


def _shown(default: object) -> str:
    match default:
        case None:
            return ""
        case True | False:
            return "on" if default else "off"
        case ():
            return "the first captions"
        case StrEnum():
            return f"`{default}`"
        case float():
            return f"`{default:g}`"
    assert default is not MISSING
    return f"`{default}`"
