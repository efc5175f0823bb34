"""Print the lower bound of each dependency that pyproject.toml declares as a pin, and for everything else what constraints.txt pins.

`make test-lowest` installs exactly these, so that a bound that is declared is a bound that was run. The bounds of `export`, `int8`,
`serve-ray` and `tune` are the versions that `make test` runs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

root = Path(__file__).parents[1]
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
extras = {
    name: requirements
    for name, requirements in project["optional-dependencies"].items()
    if name not in ("export", "int8", "serve-ray", "tune", "test", "dev", "docs")
}
declared = {}
for requirement in [*project["dependencies"], *(line for lines in extras.values() for line in lines)]:
    match = re.fullmatch(r"([\w.-]+)>=([\w.]+)(; .*)?", requirement)
    if match is None:
        sys.exit(f"pyproject.toml: {requirement!r} has no lower bound of the form NAME>=VERSION")
    name, version, marker = match.groups()
    if declared.setdefault(name, (version, marker or "")) != (version, marker or ""):
        sys.exit(f"pyproject.toml: {name} has two lower bounds, {declared[name][0]} and {version}")
for name, (version, marker) in declared.items():
    print(f"{name}=={version}{marker}")
not_pinned = {*declared, "scipy", "scikit-learn"}  # these serve tests alone, and their newest versions need a newer NumPy
for line in (root / "constraints.txt").read_text().splitlines():
    if line and not line.startswith("#") and line.split("==")[0] not in not_pinned:
        print(line)
