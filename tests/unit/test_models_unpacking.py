"""What is to be done with a bundle's models on hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.disk import Disk
from blocks.errors import DiskFull
from tasks.models.bundling import CarriedModel
from tasks.models.files import ModelFile, Revision
from tasks.models.records import Record
from tasks.models.remote_facts import HeldFile, HostModel
from tasks.models.remote_plan import plan_delivery
from tasks.models.shipping import Targets
from tasks.models.unpacking import Unpacking, too_small

MB = 1_000_000
COMMIT = "a" * 40


def unpacking(name: str, *, free: int, there: int = 0) -> Unpacking:
    """Plan a model of two files of 10 MB for gpu1, which has some of them."""
    files = tuple(ModelFile(path, 10 * MB, digit * 64) for path, digit in (("a", "1"), ("b", "2")))
    revision = Revision(name, COMMIT, COMMIT, files)
    held = {
        file.path: HeldFile(file.path, file.size, "then", number, file.sha256, ours=True)
        for number, file in enumerate(files[:there])
    }
    has = HostModel(
        "gpu1 (10.0.0.1)", "/m", name, Disk("sda", "/m", free), {COMMIT: held} if held else {}
    )
    model = CarriedModel(Record(revision), Path("/disk"), {})
    return Unpacking(model, Targets({"gpu1": "/m"}, {}, {"gpu1": plan_delivery(revision, has)}), "")


@pytest.mark.parametrize(("there", "action"), [(0, "full"), (1, "delta"), (2, "present")])
def test_a_plan_says_how_much_of_a_model_would_travel(there: int, action: str) -> None:
    (row,) = unpacking("a/b", free=100 * MB, there=there).rows()
    assert (row["host"], row["action"]) == ("gpu1", action)
    assert row["what"] == "a/b@aaaaaaaaaaaa"


def test_models_that_fit_one_by_one_but_not_together_are_refused() -> None:
    one, other = (unpacking(name, free=35 * MB) for name in ("a/one", "a/other"))
    assert too_small([one]) == too_small([other]) == {}
    found = too_small([one, other])
    assert isinstance(found["gpu1"], DiskFull)
    assert "40.0 MB together" in str(found["gpu1"])


def test_a_model_that_is_there_needs_no_room() -> None:
    there = [unpacking(name, free=1, there=2) for name in ("a/one", "a/other")]
    assert too_small(there) == {}
