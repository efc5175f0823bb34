"""Rewards over HTTP: one process, one scoring thread, requests of all clients in common batches. Needs the extra ``serve``."""

from typing import TYPE_CHECKING

from image_reward.lazy import lazy_names

if TYPE_CHECKING:
    from image_reward.serving.app import create_app
    from image_reward.serving.settings import Limits, Settings

__all__ = ["Limits", "Settings", "create_app"]

__getattr__ = lazy_names(__name__, {"app": ["create_app"], "settings": ["Limits", "Settings"]})
