"""A training begins or goes on in its folder, whatever happened to the process before."""

import errno

import pytest

from bert4keras_rwkv.training import folder as training_folder
from bert4keras_rwkv.training.folder import Folder, check_place
from bert4keras_rwkv.training.plan import TrainingPlan

pytestmark = pytest.mark.backend_free


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out"


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_at_the_start_is_no_training(path, there, monkeypatch):
    """The same command begins when there is space again."""
    if there:
        path.mkdir()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(training_folder, "atomic_file", full)
        Folder(path, {"steps": 1}).open()
    assert Folder(path, {"steps": 1}).open()
    assert Folder(path, {"steps": 1}).open()
    with pytest.raises(ValueError, match="holds another training: steps=1"):
        Folder(path, {"steps": 2}).open()


@pytest.mark.parametrize("name", ["mine.txt", "training/mine.txt", "other/"])
def test_what_else_stands_there_is_not_touched(path, name):
    file = path / name
    (file if name.endswith("/") else file.parent).mkdir(parents=True)
    if not name.endswith("/"):
        file.write_text("mine")
    for begin in (check_place, lambda path: Folder(path, {}).open()):
        with pytest.raises(ValueError, match="is there already, and it is no training"):
            begin(path)
    assert file.exists() and not (path / "training" / "run.json").exists()


def test_looking_makes_nothing(path):
    check_place(path / "below")
    assert not path.exists()


GOOD = {"steps": 20, "batch_size": 1, "length": 2, "learning_rate": 1.0, "weight_decay": 0.0}


@pytest.mark.parametrize(
    "name, value",
    [
        *(
            (name, value)
            for name in ("learning_rate", "weight_decay")
            for value in (float("nan"), float("inf"), -1.0, "1")
        ),
        *((name, value) for name in ("steps", "length", "warm_up", "seed") for value in (-1, 2.0, True, None)),
    ],
)
def test_numbers_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is a .* number.* Received: {name}="):
        TrainingPlan(**{**GOOD, name: value})
