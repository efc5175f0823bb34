"""Run by Stable Diffusion WebUI in a process of its own, before it starts: installs image-reward beside the host's packages.

Dependencies are left out: the host pins PyTorch, transformers, Pillow, NumPy and others, with which scoring works as they are. What it
needs besides is installed if it is missing.
"""

import launch

PACKAGE = "image-reward>=2.0.0"
MODULES = {"filelock": "filelock", "ftfy": "ftfy", "safetensors": "safetensors", "tokenizers": "tokenizers"}
"""What scoring imports, and the packages that bring it."""

for module, package in MODULES.items():
    if not launch.is_installed(module):
        launch.run_pip(f"install {package}", f"{package} for image-reward")
if not launch.is_installed("image_reward"):
    launch.run_pip(f'install --no-deps "{PACKAGE}"', "image-reward")
