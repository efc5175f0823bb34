from __future__ import annotations

import pytest

from image_reward.lazy import lazy_names


def test_a_name_is_imported_from_its_module_and_no_other_is_known() -> None:
    name = lazy_names("image_reward", {"types": ["Ranking"], "no_such_module": ["Missing"]})
    from image_reward.types import Ranking

    assert name("Ranking") is Ranking
    with pytest.raises(AttributeError, match="module 'image_reward' has no attribute 'Comparison'"):
        name("Comparison")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        name("Missing")
