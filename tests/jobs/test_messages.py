from __future__ import annotations

import pickle

from image_reward.jobs.messages import DefectError, WorkerDiedError


def test_a_death_comes_whole_out_of_another_process() -> None:
    death = pickle.loads(pickle.dumps(WorkerDiedError("the node has died", blameless=True)))
    assert (death.reason, death.blameless) == ("the node has died", True)
    assert WorkerDiedError("SIGKILL").blameless is False
    assert str(pickle.loads(pickle.dumps(DefectError("rows.csv, row 3: KeyError")))) == "rows.csv, row 3: KeyError"
