"""Settings as TOML, for `--print-config`: the standard library reads TOML and does not write it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def written(values: Mapping[str, Any]) -> str:
    """Return a TOML text of texts, paths, numbers, lists of them, and tables (mappings), which come last. None is left out.

    Paths are made absolute, so that the text says the same wherever it is read.
    """
    return "\n".join(_lines(values, ())) + "\n"


def _lines(values: Mapping[str, Any], within: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping) and value is not None}
    lines = [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, table in values.items():
        if isinstance(table, Mapping) and table:
            name = (*within, key)
            lines += ["", f"[{'.'.join(name)}]", *_lines(table, name)]
    return lines


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Path)):
        return json.dumps(str(value.absolute() if isinstance(value, Path) else value), ensure_ascii=False)
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)
