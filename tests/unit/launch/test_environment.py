"""The variables that a command gets from ``spot run``."""

from __future__ import annotations

from spot_plugins.launch import roster
from spot_plugins.launch.supervisor import environment


def test_what_the_command_is_told(tmp_path):
    """
    The grace goes to the sessions and to torchrun, whose timeout is in whole seconds; one that is set is not touched.
    """
    told = environment({"A": "b"}, 12.5, tmp_path)
    assert told == {
        "A": "b",
        "SPOT_GRACE_SECONDS": "12.5",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "13",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        roster.VARIABLE: str(tmp_path),
        roster.GRACE_VARIABLE: "12.5",
    }
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in environment({"PET_SHUTDOWN_TIMEOUT": "5"}, 12.5, tmp_path)
    assert environment({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}, 9, tmp_path)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "5"
    shared = environment({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0"}, 9, tmp_path)
    assert shared["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "0"
