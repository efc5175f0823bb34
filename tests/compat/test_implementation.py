"""A script or a folder of a program's own that is called ``image_reward``, as many are, beside ``import ImageReward``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ImageReward

PROGRAM = "import ImageReward as RM\nprint(RM.load.__module__, RM.available_models())\n"
BARE = """
import importlib, importlib.util, sys, types
package = types.ModuleType("ImageReward")
package.__path__ = list(importlib.util.find_spec("ImageReward").submodule_search_locations)
sys.modules["ImageReward"] = package
utils = importlib.import_module("ImageReward.utils")
print(utils.load.__module__, utils.available_models())
"""
MODULE_FIRST = "import ImageReward.models.BLIP.blip_pretrain\n" + PROGRAM


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    installed = str(Path(ImageReward.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": installed}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("files", "arguments"),
    [
        ({"image_reward.py": PROGRAM}, ["image_reward.py"]),
        ({"image_reward.py": PROGRAM}, ["-m", "image_reward"]),
        ({"image_reward.py": BARE}, ["image_reward.py"]),
        ({"image_reward/__init__.py": "", "main.py": MODULE_FIRST}, ["main.py"]),
        ({"image_reward/notes.txt": "", "main.py": PROGRAM}, ["main.py"]),
    ],
    ids=["script", "script as a module", "script that passes by __init__", "package", "folder"],
)
def test_what_bears_the_name_does_not_shadow_the_package(files: dict[str, str], arguments: list[str], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1) == ["image_reward.scorers.compat_v15", "['ImageReward-v1.0']\n"]


@pytest.mark.parametrize(
    ("files", "shadow"),
    [
        ({"image_reward.py": "", "main.py": f"import image_reward\n{PROGRAM}"}, "image_reward.py"),
        ({"image_reward.py": PROGRAM, "main.py": "import image_reward\n"}, "image_reward.py"),
        ({"image_reward/__init__.py": "", "main.py": f"import image_reward\n{PROGRAM}"}, "image_reward/__init__.py"),
    ],
    ids=["module", "module that imports it", "package"],
)
def test_what_was_imported_under_the_name_already_is_named(files: dict[str, str], shadow: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    done = run(tmp_path, "main.py")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / shadow} was imported as 'image_reward', which is the name of the package")
    assert last.endswith("give yours another name")
