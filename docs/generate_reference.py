"""`python docs/generate_reference.py`: the reference pages, from the code and the .proto files that they describe.

Writes docs/reference/*.md. A test holds what is committed against what this makes.
"""

import ast
import inspect
import itertools
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import typer.main
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
MADE = "*Made by `python docs/generate_reference.py`; change what it is made from instead.*"


def pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {name: text() for name, text in PAGES.items()}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def page(title: str, *parts: str) -> str:
    """Return a page."""
    return "\n\n".join([f"# {title}", MADE, *(part for part in parts if part)]) + "\n"


# --- the protocol ------------------------------------------------------------------------------------------------------


def protocol() -> str:
    """Return every service, message and enum with the comments of the .proto files."""
    found = [file for file in _descriptors().file if file.name.startswith("med_duallora/")]
    parts = [
        "How the calls make a round, and how the protocol may change: [protocol.md](../protocol.md). Errors: "
        "[shared/status.py](../../shared/status.py)."
    ]
    for file in found:
        said = _comments(file)
        parts.append(f"## {file.name}")
        for number, service in enumerate(file.service):
            parts += [f"### service {service.name}", said.get((6, number), "")]
            parts.append(table(["call", "takes", "gives", "meaning"], _calls(service, said, number)))
        for number, message in enumerate(file.message_type):
            parts += [f"### {message.name}", said.get((4, number), "")]
            parts += [
                f"**{one.name}**: {_values(one, said, (4, number, 4, k))}" for k, one in enumerate(message.enum_type)
            ]
            rows = [
                [str(one.number), f"`{one.name}`", _kind(one, message), said.get((4, number, 2, k), "")]
                for k, one in enumerate(message.field)
            ]
            parts.append(table(["number", "field", "type", "meaning"], rows) if rows else "")
        for number, enum in enumerate(file.enum_type):
            parts += [f"### enum {enum.name}", said.get((5, number), ""), _values(enum, said, (5, number))]
    return page("The protocol, call by call", *parts)


def _descriptors() -> FileDescriptorSet:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        buf = Path(sys.executable).parent / "buf"
        subprocess.run([buf, "build", "proto", "--as-file-descriptor-set", "-o", image], cwd=ROOT, check=True)
        found = FileDescriptorSet()
        found.ParseFromString(image.read_bytes())
        return found


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Return the comments before each element, by its path in the descriptor (descriptor.proto, SourceCodeInfo)."""
    return {
        tuple(place.path): " ".join(place.leading_comments.split())
        for place in file.source_code_info.location
        if place.leading_comments
    }


def _calls(service: Any, said: dict[tuple[int, ...], str], number: int) -> list[list[str]]:
    def kind(name: str, streams: bool) -> str:
        return ("stream of " if streams else "") + _link(name)

    return [
        [
            f"`{one.name}`",
            kind(one.input_type, one.client_streaming),
            kind(one.output_type, one.server_streaming),
            said.get((6, number, 2, k), ""),
        ]
        for k, one in enumerate(service.method)
    ]


def _values(enum: Any, said: dict[tuple[int, ...], str], path: tuple[int, ...]) -> str:
    rows = [[str(one.number), f"`{one.name}`", said.get((*path, 2, k), "")] for k, one in enumerate(enum.value)]
    return table(["number", "value", "meaning"], rows)


def _link(name: str) -> str:
    short = name.rpartition(".")[2]
    return f"[{short}](#{short.lower()})"


def _kind(one: FieldDescriptorProto, of: DescriptorProto) -> str:
    """Return the type of a message's field; a map is a list of pairs to the compiler."""
    for pair in of.nested_type:
        if pair.options.map_entry and one.type_name.endswith(f".{of.name}.{pair.name}"):
            return f"map from {_kind(pair.field[0], pair)} to {_kind(pair.field[1], pair)}"
    plain = FieldDescriptorProto.Type.Name(one.type).removeprefix("TYPE_").lower()
    kind = {"message": _link, "enum": lambda name: f"`{name.rpartition('.')[2]}`"}.get(plain, lambda _: plain)(
        one.type_name
    )
    return f"list of {kind}" if one.label == FieldDescriptorProto.LABEL_REPEATED else kind


# --- commands ----------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return every command of both programs with its options, from the programs themselves."""
    from aggregator import cli as aggregator
    from site_agent import cli as site_agent

    parts = []
    for program, app, epilog in (
        ("aggregator", aggregator.build(), aggregator.EPILOG),
        ("site-agent", site_agent.app, site_agent.EPILOG),
    ):
        group: Any = typer.main.get_command(app)
        parts += [f"## {program}", _prose(group.help), " ".join(epilog.split()), _options(group)]
        for name, command in _commands(group):
            parts += [f"### {program} {name}", _prose(command.help), _options(command)]
    return page("Commands", *parts)


def _commands(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command below a group with the words that name it."""
    for name, command in sorted(group.commands.items()):
        yield name, command
        for words, inner in _commands(command) if hasattr(command, "commands") else ():
            yield f"{name} {words}", inner


def _prose(help_: str | None) -> str:
    """Return a help text as Markdown: its examples as code, each on a line of its own."""
    text, *examples = re.split(r"Examples?:\s", textwrap.dedent(help_ or "").replace("\b", ""))
    joined, _, codes = " ".join(" ".join(examples).split()).partition("Exit codes:")
    found = re.split(r"\s(?=(?:aggregator|site-agent|torchrun) )", joined.strip())
    code = "\n".join(f"    {one}" for one in found if one)
    return "\n\n".join(part for part in (text.strip(), code, codes and f"Exit codes:{codes}") if part)


def _options(command: Any) -> str:
    rows = []
    for one in command.params:
        if one.name in ("help", "install_completion", "show_completion"):
            continue
        flags = [one.name.upper()] if one.param_type_name == "argument" else [*one.opts, *one.secondary_opts]
        default = one.default() if callable(one.default) else one.default
        shown = "required" if one.required else "" if default in (None, (), [], False, "") else f"`{default}`"
        rows.append(
            [
                ", ".join(f"`{flag}`" for flag in flags),
                _word(one.type_descriptor.annotation),
                shown,
                getattr(one, "help", None) or "",
            ]
        )
    return table(["option", "type", "default", "meaning"], rows) if rows else ""


def _word(kind: Any) -> str:
    """Return what a person writes, in a word."""
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    plain = {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no", "Path": "path"}
    return plain.get(name, name)


# --- settings ----------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Return the keys of site.toml."""
    from site_agent.config import SiteConfig
    from site_agent.consent import Pins

    own = [one for one in fields(SiteConfig) if one.name not in ("tls", "agreed")]
    return page(
        "site.toml",
        "Paths are relative to the file. Options of the command line override it. An example with every key: "
        "[deploy/site.toml](../../deploy/site.toml).",
        _settings(SiteConfig, own),
        "## [tls]",
        table(
            ["key", "type", "default", "meaning"],
            [
                ["`ca`", "path", "required", "Certificate of the federation's CA (PEM)."],
                ["`certificate`", "path", "required", "This site's certificate (PEM); its name is the site's name."],
                ["`key`", "path", "required", "Its private key (PEM), made here by `site-agent join`."],
            ],
        ),
        "## [agreed]",
        "What this site pins. A key that is not there pins nothing.",
        _settings(Pins, fields(Pins)),
    )


def recipe() -> str:
    """Return the parameters of recipes."""
    from shared.recipe import Recipe

    return page(
        "Recipe parameters",
        "`aggregator init --recipe NAME --set PARAMETER=VALUE` sets them; a site pins the largest it takes in `[agreed.at_most]`. "
        "What each method trains, sends and keeps: [methods.md](../methods.md). What excludes what: "
        "[security.md](../security.md#which-choices-exclude-each-other).",
        _settings(Recipe, [one for one in fields(Recipe) if one.name != "name"]),
    )


def _settings(kind: type[Any], of: Iterable[Field[Any]]) -> str:
    said = _docstrings(kind)
    rows = [[f"`{one.name}`", _type(one), _default(one), said.get(one.name, "")] for one in of]
    return table(["key", "type", "default", "meaning"], rows)


def _type(one: Field[Any]) -> str:
    """Return what a person writes: the choices of a Literal, or a plain word."""
    choices = getattr(one.type, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(f"`{choice}`" for choice in choices)
    (kind, *_) = [kind for kind in (choices if type(None) in choices else (one.type,)) if kind is not type(None)]
    word = _word(kind)
    if word != getattr(kind, "__name__", kind):
        return word
    return "table" if "apping" in str(kind) else "list"


def _default(one: Field[Any]) -> str:
    if one.default is MISSING and one.default_factory is MISSING:
        return "required"
    value = None if one.default is MISSING else one.default
    return "" if value in (None, "", ()) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the text under each field of a class."""
    (body,) = (
        one.body for one in ast.parse(textwrap.dedent(inspect.getsource(kind))).body if isinstance(one, ast.ClassDef)
    )
    return {
        before.target.id: " ".join(after.value.value.split())
        for before, after in itertools.pairwise(body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


PAGES: dict[str, Callable[[], str]] = {
    "protocol.md": protocol,
    "commands.md": commands,
    "site-toml.md": settings,
    "recipe.md": recipe,
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"wrote docs/reference/{name}")
