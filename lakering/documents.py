"""YAML that people write: read safely, with the line of every value, and validated into frozen settings.

Aliases are refused (a few lines of them can grow to gigabytes), and so are repeated keys, tags and files over 1 MiB.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lakering.errors import InputError, LakeringError, SettingError, nearest

MAX_BYTES = 1 << 20
MAX_DEPTH = 100
STARTS = (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken)
ENDS = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
#: Half of a pair that UTF-16 writes a character in: a double-quoted text can spell it, UTF-8 cannot hold it.
NO_CHARACTER = re.compile("[\ud800-\udfff]")
#: Unquoted words that YAML 1.1 gives a meaning of their own (2024-01-01, =, <<) are texts here.
TEXTS = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value", "tag:yaml.org,2002:merge")
Path_ = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of all settings that come from YAML: frozen, no key that is not known, and no number that is infinite or none."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Document:
    """A YAML file as plain values, with the line (from 1) on which each value stands."""

    path: Path
    value: Any
    lines: dict[Path_, int]

    def where(self, at: Iterable[str | int] = ()) -> str:
        """``file:line`` of the value at a path, or of the nearest one above it."""
        parts = tuple(at)
        while parts and parts not in self.lines:
            parts = parts[:-1]
        return f"{self.path}:{self.lines.get(parts, 1)}"

    def error(self, at: Iterable[str | int], message: str) -> SettingError:
        parts = tuple(at)
        return SettingError(f"{self.where(parts)}: {'.'.join(map(str, parts)) or 'document'}: {message}")

    def validate(self, model: type[Model], at: Path_ = ()) -> Model:
        """The value at a path as a model; SettingError names file, line, what was expected and the nearest valid key."""
        value = self.value
        for part in at:
            value = value[part]
        try:
            return model.model_validate(value)
        except LakeringError as error:
            raise self.error(at, error.message) from None
        except ValidationError as error:
            raise self._explain(model, error, at) from None

    def _explain(self, model: type[BaseModel], error: ValidationError, at: Path_) -> SettingError:
        messages = []
        problems = error.errors()
        # A tuple whose only item is wrong is reported as too short as well.
        real = [problem for problem in problems if problem["type"] != "too_short"] or problems
        for problem in real[:5]:
            where = _longest_known(self.lines, at, problem["loc"])
            text = problem["msg"].removeprefix("Value error, ")
            name = problem["loc"][-1] if problem["loc"] else ""
            if problem["type"] == "extra_forbidden":
                text = f"unknown key {name!r}{nearest(str(name), _fields(model, problem['loc'][:-1]))}"
            elif problem["type"] == "missing":
                text = f"key {name!r} is missing"
            elif not isinstance(problem["input"], dict | list):
                where = _path_in(self.value, (*at, *problem["loc"]))  # a key that --set brought has no line, but a name
                text += f", got {problem['input']!r}"
            messages.append(f"{self.where(where)}: {'.'.join(map(str, where)) or 'document'}: {text}")
        return SettingError("\n".join(messages))


def _longest_known(lines: dict[Path_, int], at: Path_, location: Path_) -> Path_:
    """Follows a pydantic location through the document; parts that pydantic adds (names of union members) are left out."""
    found = at
    for part in location:
        if (*found, part) in lines:
            found = (*found, part)
    return found


def _path_in(value: Any, location: Path_) -> Path_:
    """Follows a pydantic location through plain values, as ``_longest_known`` does through lines."""
    found: Path_ = ()
    for part in location:
        inside: dict[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else value if isinstance(value, dict) else {}
        if part in inside:
            found, value = (*found, part), inside[part]
    return found


def _fields(model: type[BaseModel], location: Iterable[str | int]) -> list[str]:
    """Names of the fields of the model that a location inside ``model`` leads to."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
        current = _model_in(current, part)
        if current is None:
            return []
    if not (isinstance(current, type) and issubclass(current, BaseModel)):
        return []
    return [field.alias or name for name, field in current.model_fields.items()]


def _model_in(annotation: Any, part: str | int) -> Any:
    """The model inside ``list[M]``, ``dict[str, M]``, ``M | None`` or a union (chosen by its name, where given)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    members = [_model_in(inner, part) for inner in getattr(annotation, "__args__", ())]
    models = [member for member in members if member is not None]
    named = [member for member in models if getattr(member, "__name__", "") == part]
    return named[0] if named else (models[0] if models else None)


def read_document(path: str | os.PathLike[str], *, variables: Callable[[str], str | None] | None = None) -> Document:
    """Reads a YAML file. ``${NAME}`` and ``${NAME:-default}`` inside values are filled from ``variables``."""
    file = Path(path)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{file} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{str(file)!r} cannot be read: {getattr(error, 'strerror', error)}") from None
    if len(content) > MAX_BYTES:
        raise SettingError(f"{file} has {len(content):,} bytes, more than the {MAX_BYTES:,} that a document may have")
    try:
        node = _compose(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SettingError(f"{file}: not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise SettingError(f"{file}:{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise SettingError(f"{file}: nested too deeply") from None
    except ValueError as error:  # a \U escape beyond Unicode
        raise SettingError(f"{file}: not valid YAML: {error}") from None
    lines: dict[Path_, int] = {}
    value = _plain(node, (), lines, file, variables) if node is not None else {}
    if not isinstance(value, dict):
        raise SettingError(f"{file}:1: expected keys and values, got {type(value).__name__}")
    return Document(file, value, lines)


def _compose(text: str) -> yaml.Node | None:
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        depth += isinstance(token, STARTS) - isinstance(token, ENDS)
        if depth > MAX_DEPTH:  # for each token the scanner looks at every open bracket: some thousands hold it up for a minute
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} deep", problem_mark=token.start_mark)
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
            raise yaml.MarkedYAMLError(problem="anchors, aliases and tags are not taken here", problem_mark=token.start_mark)
    return yaml.compose(text, Loader=yaml.SafeLoader)


class _Scalars(yaml.SafeLoader):
    """Dates stay text: a contract says what a value is, YAML's guess does not."""


_Scalars.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _plain(node: yaml.Node, at: Path_, lines: dict[Path_, int], file: Path,
           variables: Callable[[str], str | None] | None) -> Any:  # fmt: skip
    lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            # `on:` is a word here, as in YAML 1.2, though YAML 1.1 reads it as true.
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or NO_CHARACTER.search(key):
                raise SettingError(f"{file}:{line}: a key must be a word")
            if key in result:
                raise SettingError(f"{file}:{line}: key {key!r} stands here twice")
            result[key] = _plain(value_node, (*at, key), lines, file, variables)
            lines[(*at, key)] = line
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*at, index), lines, file, variables) for index, item in enumerate(node.value)]
    where = f"{file}:{node.start_mark.line + 1}"
    loader = _Scalars("")
    tag = "tag:yaml.org,2002:str" if node.tag in TEXTS else node.tag
    try:
        value = loader.construct_object(yaml.ScalarNode(tag, node.value, node.start_mark))
    except ValueError:  # 0x_, or more digits than Python reads
        raise SettingError(f"{where}: {node.value[:100]!r} is not a number; write a text in quotes") from None
    if not isinstance(value, str):
        return value
    if NO_CHARACTER.search(value):  # as JSON writes a character beyond U+FFFF: in two halves
        try:
            value = value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise SettingError(f"{where}: {value[:100]!r} holds half of a character") from None
    return _filled(value, variables, where) if variables is not None else value


def _filled(text: str, variables: Callable[[str], str | None], where: str) -> str:
    def fill(match: re.Match[str]) -> str:
        value = variables(match["name"])
        if value is None:
            value = match["default"]
        if value is None:
            raise SettingError(f"{where}: ${{{match['name']}}} is not set; set it, or write ${{{match['name']}:-default}}")
        return value

    return re.sub(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}", fill, text)


def with_overrides(document: Document, overrides: Iterable[str]) -> Document:
    """The document with ``--set a.b=value`` carried out; values are read as YAML. A list's index is a number."""
    value = document.value
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise SettingError(f"--set {override!r}: expected key=value, such as training.epochs=5")
        try:
            node = _compose(text)
            parsed = _plain(node, (), {}, document.path, None) if node is not None else None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise SettingError(f"--set {override!r}: {getattr(error, 'problem', error)}") from None
        value = _with(value, key.split("."), parsed, override)
    return Document(document.path, value, document.lines)


def _with(value: Any, keys: list[str], new: Any, override: str) -> Any:
    if not keys:
        return new
    key, rest = keys[0], keys[1:]
    if isinstance(value, list):
        if not key.isdigit() or int(key) >= len(value):
            raise SettingError(f"--set {override!r}: {key!r} is not an index of a list of {len(value)}")
        return [_with(item, rest, new, override) if i == int(key) else item for i, item in enumerate(value)]
    if value is None or isinstance(value, dict):
        known = value or {}
        return {**known, key: _with(known.get(key), rest, new, override)}
    raise SettingError(f"--set {override!r}: {key!r} lies below a plain value")
