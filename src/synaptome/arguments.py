"""From words on the command line to frozen dataclasses, by tyro; what does not fit is told in one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Sequence
from typing import Any, TypeVar, get_origin, get_type_hints

import tyro

from synaptome.errors import ConfigurationError, unknown

_T = TypeVar("_T")


def parse(kind: type[_T], words: Sequence[str], prog: str) -> _T:
    """An instance of the dataclass `kind` from command-line words; `--help` prints its help and exits.

    Raises:
        ConfigurationError: an unknown option or value; says what was given and what is allowed, nearest first.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, args=list(words), prog=prog)
    except SystemExit as exit_:
        if not exit_.code:
            raise
    raise _explained(told.getvalue(), options(kind), prog)


def options(kind: Any, prefix: str = "--") -> list[str]:
    """Every option of a dataclass, nested ones with dots, as they are written on the command line."""
    names: list[str] = []
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        markers = getattr(hint, "__metadata__", ())  # of Annotated[kind, *markers]
        inner = hint.__origin__ if markers else hint
        if dataclasses.is_dataclass(inner):
            flat = any(getattr(marker, "name", None) == "" for marker in markers)
            names += options(inner, prefix if flat else f"{prefix}{_hyphens(field.name)}.")
        elif tyro.conf.Positional not in markers:
            names.append(prefix + _hyphens(field.name))
    return names


def given(words: Sequence[str], option: str) -> list[str]:
    """The values that an option has been given, in order, before the words as a whole can be parsed."""
    found = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue="--"):
        name, equals, value = word.partition("=")
        if name == option and (equals or not following.startswith("--")):
            found.append(value if equals else following)
    return found


def assignment(kind: Any, field: str, value: str) -> list[str]:
    """The words that give a field of the dataclass `kind` a value that is written as one word.

    Args:
        kind: a dataclass.
        field: its field; of a nested dataclass with dots.
        value: of a switch, true or false; of several values, these with spaces between them; of anything else, as
            on the command line.

    Raises:
        ConfigurationError: a switch is neither true nor false.
    """
    *outer, name = field.replace("-", "_").split(".")
    for part in outer:
        kind = get_type_hints(kind)[part]
    hint = get_type_hints(kind)[name]
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise ConfigurationError(f"--{field} is true or false; given {value!r}")
        switch = name if value.lower() == "true" else f"no-{name}"
        return [f"--{_hyphens('.'.join([*outer, switch]))}"]
    return [f"--{field}", *value.split()] if get_origin(hint) is tuple else [f"--{field}={value}"]


def _explained(told: str, allowed: list[str], prog: str) -> ConfigurationError:
    """Tyro's message, which is a box of several lines, as one sentence."""
    body = [line.strip(" │|") for line in told.splitlines()[1:]]  # the first line is the box's title
    rules = {line for line in body if set(line) <= set("-─├┤╰╯")}
    parts = [" ".join(part) for rule, part in itertools.groupby(body, rules.__contains__) if not rule]
    text = parts[0] if parts else ""
    if match := re.match(r"Unrecognized options: (.*)", text):
        given = match[1].split(", ")[0]
        return unknown("option" if given.startswith("-") else "word", given.split("=")[0], allowed)
    if match := re.match(r"invalid choice '(.*?)' for argument '(.*?)'\. Expected one of \((.*)\)", text):
        return unknown(f"value for {match[2]}", match[1], re.findall(r"'(.*?)'", match[3]))
    if match := re.match(r"Error parsing (--\S+): (?:invalid literal|could not convert).*?: '(.*)'", text):
        return _another_kind(match[1], match[2], parts)
    if match := re.match(r"Error parsing (--\S+): (?:Could not find valid|no type matching).*?\['(.*)'\]", text):
        return _another_kind(match[1], match[2].replace("', '", " "), parts)
    if match := re.match(r"Error parsing (\S+): (.*)", text):
        return ConfigurationError(match[2])
    return ConfigurationError(f"{text} See: {prog} --help" if text else f"these options do not fit; see: {prog} --help")


def _another_kind(option: str, given: str, parts: Sequence[str]) -> ConfigurationError:
    """What an option takes, as its help in tyro's message has it: `INT`, `{None}|FLOAT`, `[FLOAT [FLOAT ...]]`, ..."""
    found = re.search(rf"{re.escape(option)} (\[\w+ \[\w+ \.\.\.\]\]|\S+)", " ".join(parts[1:]))
    form = found[1] if found else ""
    if form.startswith("["):
        several = {"INT": "whole numbers", "FLOAT": "numbers"}.get(form[1:].split()[0], "values")
        takes = f"{several} with spaces between them"
    else:
        numbers = {"INT": "a whole number", "FLOAT": "a number"}
        words = (numbers.get(kind, kind) for kind in form.split("|"))
        known = [word.strip("{}").replace(",", ", ") for word in words if not word.isupper()]
        *others, last = sorted(known, key="None".__eq__) or ["another kind of value"]
        takes = " or ".join([", ".join(others), last] if others else [last])
    return ConfigurationError(f"{option} takes {takes}; given {given!r}")


def _hyphens(name: str) -> str:
    return name.replace("_", "-")
