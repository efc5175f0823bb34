"""What `make docs` makes besides the pages in docs/: a hook of MkDocs.

The reference comes from docstrings and from the commands' own help, notebooks and integrations from their files, and a file of the
repository that a page links to becomes a page. A public name without a docstring is a warning, which ends a strict build.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import os
import posixpath
import re
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")
MOVED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "integrations/comfyui/README.md": "integrations/comfyui.md",
    "integrations/sdwebui/README.md": "integrations/sdwebui.md",
}
"""Files of the repository that have a page under another name; a file in docs/ has its own."""
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
PACKAGES = {
    "image_reward": "What most programs need.",
    "image_reward.scorers": "Scorers of every kind, and what a scorer of your own is made of.",
    "image_reward.comparisons": "Human rankings: read, checked, converted, split.",
    "image_reward.comparisons.shapes": "The drawn world that the embedded model knows.",
    "image_reward.comparisons.shapes_judge": "Faults of drawings, counted without a model.",
    "image_reward.evaluation": "Scorers against human rankings.",
    "image_reward.evaluation.generators": "Image generators against each other.",
    "image_reward.prompt_sets": "Published sets of prompts, and files of prompts.",
    "image_reward.training": "Training reward models.",
    "image_reward.tuning": "A reward put to work with image generators.",
    "image_reward.tuning.objectives": "What a tuned generator maximises.",
    "image_reward.tuning.lora": "LoRA weights of any pipeline.",
    "image_reward.jobs": "Files of millions of rows.",
    "image_reward.serving": "The service as an application.",
    "image_reward.metrics": "Arithmetic on ranks and rewards.",
}
log = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Any, config: Any) -> Any:
    generated = {
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "integrations/comfyui.md": (ROOT / "integrations/comfyui/README.md").read_text(),
        "integrations/sdwebui.md": (ROOT / "integrations/sdwebui/README.md").read_text(),
        "reference/commands.md": _commands_page(),
        "reference/python.md": _python_page(),
        **{f"notebooks/{path.stem}.md": _notebook(path) for path in sorted((ROOT / "examples/notebooks").glob("*.ipynb"))},
        **{f"reference/python/{name}.md": _package_page(name, about) for name, about in PACKAGES.items()},
    }
    for file in list(files.documentation_pages()):
        for target in _outside(file.src_uri, (Path(config["docs_dir"]) / file.src_uri).read_text()):
            generated.setdefault(_page_of(target), _file_page(target))
    for uri in list(generated):
        for target in _outside(uri, generated[uri]) if uri.startswith(("integrations/", "changelog")) else ():
            generated.setdefault(_page_of(target), _file_page(target))
    for uri, content in generated.items():
        file = File.generated(config, uri, content=content)
        if uri.startswith("files/"):
            file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return LINK.sub(lambda link: _link(page.file.src_uri, link[1]), markdown)


# --- links to files of the repository ---


def _repository_path(uri: str, link: str) -> str:
    source = next((path for path, moved in MOVED.items() if moved == uri and uri != "index.md"), f"docs/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _outside(uri: str, markdown: str) -> list[str]:
    """The files of the repository that a page links to and that are not in docs/."""
    targets = [_repository_path(uri, link[1]) for link in LINK.finditer(markdown)]
    return [target for target in targets if not target.startswith("docs/") and target not in MOVED and (ROOT / target).exists()]


def _page_of(target: str) -> str:
    return f"files/{target}.md" if (ROOT / target).is_file() else f"files/{target}/index.md"


def _link(uri: str, link: str) -> str:
    target = _repository_path(uri, link)
    if target.startswith("docs/"):
        page = target.removeprefix("docs/")
    elif target in MOVED:
        page = MOVED[target]
    elif (ROOT / target).exists():
        page = _page_of(target)
    else:
        return link  # MkDocs says that there is no such file
    return posixpath.relpath(page, posixpath.dirname(uri) or ".")


def _file_page(target: str) -> str:
    path = ROOT / target
    if path.is_dir():
        return f"# {target}\n\n" + "\n".join(f"- `{entry.name}`" for entry in sorted(path.iterdir()) if entry.name != "__pycache__")
    return f"# {path.name}\n\n`{target}`\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text().rstrip()}\n````\n"


def _notebook(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    parts = [f"```python\n{text}\n```" if cell["cell_type"] == "code" else text for cell, text in zip(cells, texts, strict=True)]
    title, *rest = "\n\n".join(parts).split("\n", 1)
    return f"{title}\n\n`examples/notebooks/{path.name}`, which runs in seconds without a download.\n\n{rest[0]}"


# --- commands ---


def _commands_page() -> str:
    from image_reward.cli import COMMANDS, PROGRAM

    overview = [f"| [`{PROGRAM} {name}`](#{PROGRAM}-{name}) | {summary} |" for name, summary in COMMANDS.items()]
    parts = ["# Commands", "From `image-reward COMMAND --help`.", "\n".join(["| | |", "|---|---|", *overview])]
    for name in COMMANDS:
        parts += _command([name], 2)
    return "\n\n".join(parts) + "\n"


def _command(command: list[str], level: int) -> list[str]:
    usage, description, panels = _help(command)
    parts = [f"{'#' * level} image-reward {' '.join(command)}", f"```text\n{usage}\n```", description]
    for title, entries in panels:
        if title == "subcommands":
            continue
        rows = [f"`{name}`\n:   {_text(text)}" for name, text in entries if not name.startswith("-h")]
        parts += [f"**{title.capitalize()}**", "\n\n".join(rows)] if rows else []
    subcommands = re.search(r"\[-h\] \{([\w,-]+)\}", usage) if any(title == "subcommands" for title, _ in panels) else None
    for name in subcommands[1].split(",") if subcommands else ():
        parts += _command([*command, name], level + 1)
    return parts


def _text(text: str) -> str:
    """Help as Markdown: literal, but for the backticks in it."""
    return re.sub(r"(?<!`)([*_<\[])(?![^`]*`)", r"\\\1", text) or "."


def _help(command: list[str]) -> tuple[str, str, list[tuple[str, list[tuple[str, str]]]]]:
    """Usage, description, and the options by group, of the help of a command."""
    from image_reward.cli import main

    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)  # of another encoding, the boxes would be drawn in ASCII
    narrow = mock.patch.dict(os.environ, {"COLUMNS": "120", "NO_COLOR": "1"})  # a wider help has boxes side by side
    with narrow, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    head, *boxes = re.split(r"^╭─ ", printed.buffer.getvalue().decode(), flags=re.MULTILINE)
    usage, _, description = head.strip().partition("\n\n")
    panels = []
    for box in boxes:
        title, *lines = box.splitlines()
        entries: list[tuple[str, str]] = []
        for line in lines:
            text = line.strip("│╰╯╭╮").rstrip().removeprefix(" ")
            if not text.strip("─ ") or "─" * 20 in text:
                continue
            if text.startswith(" ") and entries:
                entries[-1] = (entries[-1][0], f"{entries[-1][1]} {text.strip()}".strip())
            elif name := re.fullmatch(r"(\S.*?)(?:\s{2,}(.*))?", text):
                entries.append((name[1], name[2] or ""))
        if entries and not entries[0][1] and not entries[0][0].startswith("-") and " " in entries[0][0]:
            del entries[0]  # what the group is
        panels.append((title.strip(" ─╮"), entries))
    return usage.removeprefix("usage: "), description, panels


# --- Python ---


def _public(package: str) -> list[str]:
    module = import_module(package)
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == package and not name.startswith("_")]
    return [name for name in getattr(module, "__all__", own) if name != "__version__"]


def _python_page() -> str:
    rows = []
    for package, about in PACKAGES.items():
        names = ", ".join(f"`{name}`" for name in _public(package))
        rows.append(f"## [{package}](python/{package}.md)\n\n{about}\n\n{names}")
    return "# Python\n\n" + "\n\n".join(rows) + "\n"


def _package_page(package: str, about: str) -> str:
    parts = [f"# {package}", about]
    for name in _public(package):
        value = getattr(import_module(package), name)
        _check_documented(f"{package}.{name}", value)
        shown_elsewhere = package != "image_reward" and name in _public("image_reward")
        parts.append(f"## {name}\n\nSee [{name}](image_reward.md#image_reward.{name})." if shown_elsewhere else f"::: {package}.{name}")
    return "\n\n".join(parts) + "\n"


def _check_documented(name: str, value: Any) -> None:
    values = {name: value}
    if inspect.isclass(value) and value.__module__.startswith("image_reward"):
        values |= {f"{name}.{key}": member for key, member in vars(value).items() if not key.startswith("_")}
    for key, member in values.items():
        documented = inspect.isroutine(member) or inspect.isclass(member) or isinstance(member, property | staticmethod | classmethod)
        if documented and not inspect.getdoc(member):
            log.warning("%s is public and has no docstring", key)
