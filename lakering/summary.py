"""What a job did: one summary that a person can read, and the same as one JSON object."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Summary:
    """Facts in sections, in the order in which they were added. ``status`` is ``ok`` or the error's class name."""

    job: str
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: str = "ok"
    error: str | None = None

    def add(self, section: str, **facts: Any) -> None:
        """Adds facts to a section; a fact of the same name is replaced."""
        self.sections.setdefault(section, {}).update(facts)

    def render(self) -> str:
        """The summary as text: a line for each fact, numbers with separators, nested facts indented, in lists with a dash."""
        lines = [f"{self.job}: {self.status}"]
        for section, facts in self.sections.items():
            lines.append(f"  {section}")
            lines += _lines(facts, indent=4, named=_words)
        return "\n".join(lines)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the summary as one JSON object, through a temporary name."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        facts = {"job": self.job, "status": self.status, "error": self.error, **self.sections}
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(json.dumps(facts, indent=2, default=str) + "\n")
        temporary.replace(target)


def _lines(facts: dict[str, Any], indent: int, named: Callable[[str], str] = str) -> list[str]:
    labels = {name: named(str(name)) for name in facts}
    width = max(map(len, labels.values()), default=0)
    lines = []
    for name, value in facts.items():
        label = " " * indent + labels[name]
        if isinstance(value, dict) and value:
            lines += [label, *_lines(value, indent + 2)]
        elif isinstance(value, list | tuple) and value and all(isinstance(item, dict) and item for item in value):
            lines.append(label)
            for item in value:
                first, *others = _lines(item, indent + 4)
                lines += [f"{' ' * (indent + 2)}- {first.lstrip()}", *others]
        else:
            text = ", ".join(map(_text, value)) if isinstance(value, list | tuple) and value else _text(value)
            lines.append(f"{label.ljust(indent + width)}  {text}")
    return lines


def _words(name: str) -> str:
    """A fact's name in words. Of nested facts the names are data, such as columns, and stay as they are."""
    return name.replace("_", " ")


def _text(value: Any) -> str:
    if value is None or value == {} or value in ([], ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
