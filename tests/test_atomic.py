"""What is written is whole or as it was: whatever fails, whoever else writes, wherever it goes."""

import errno
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bert4keras_rwkv import atomic
from bert4keras_rwkv.atomic import atomic_file, atomic_files, atomic_folder, check_file, check_folder, remove_unfinished
from bert4keras_rwkv.state import RWKVState

pytestmark = [
    pytest.mark.backend_free,
    pytest.mark.skipif(sys.platform == "win32", reason="needs what POSIX says of files"),
]


def file(path, text="new"):
    with atomic_file(path) as unfinished:
        unfinished.write_text(text)


def pair(path, text="new"):
    with atomic_files(path / "a", path / "b") as files:
        for one in files:
            one.write_text(text)


def folder(path, text="new"):
    with atomic_folder(path) as unfinished:
        for name in "ab":
            (unfinished / name).write_text(text)


def holds(path):
    """What lies in a folder: path in it -> text."""
    return {str(one.relative_to(path)): one.read_text() for one in path.rglob("*") if one.is_file()}


@pytest.fixture
def old(tmp_path):
    """A folder with two files to replace, and others, in a folder of its own."""
    path = tmp_path / "here" / "old"
    (path / "more").mkdir(parents=True)
    for name in ("a", "b", "other", "more/c"):
        (path / name).write_text("old")
    return path


SPECIAL = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "a device": lambda path: path.symlink_to("/dev/full"),
}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("kind", SPECIAL)
def test_only_files_are_replaced(kind, tmp_path, monkeypatch):
    """Before anything is written. Links to something else count as that."""
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    SPECIAL[kind](pathlib.Path("a"))
    before = os.lstat("a")
    for write in (file, check_file):
        with pytest.raises(ValueError, match=f"'a' is {kind}, and"):
            write("a")
    if kind != "a folder":
        for write in (folder, check_folder):
            with pytest.raises(ValueError, match=r"is there already, and it is no folder"):
                write("a")
    with pytest.raises(ValueError, match=f"a' is {kind}, and" if kind != "a device" else "a device"):
        folder(tmp_path)
    assert os.lstat("a") == before and os.listdir() == ["a"]


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/dev/null", "/dev/full"])
def test_standard_streams_are_no_files(path):
    with pytest.raises(ValueError, match="Write to a file, then copy it"):
        file(path)


def test_a_link_still_leads_to_the_file_that_is_replaced(tmp_path):
    """So does one to a file that is not there yet, and one to a folder."""
    (tmp_path / "there").mkdir()
    for name, write, target in (("a", file, "there/a"), ("f", folder, "there/f")):
        (tmp_path / name).symlink_to(target)
        for text in ("old", "new"):
            write(tmp_path / name, text)
        assert (tmp_path / name).is_symlink()
    assert holds(tmp_path / "there") == {"a": "new", "f/a": "new", "f/b": "new"}


def test_permissions_stay(old):
    os.chmod(old / "a", 0o640)
    os.chmod(old, 0o750)
    file(old / "a")
    folder(old)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old / "a", old)] == [0o640, 0o750]


def test_what_is_read_only_is_not_replaced(old, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write everything
    for write, path in ((file, old / "a"), (check_file, old / "a"), (folder, old), (check_folder, old)):
        with pytest.raises(PermissionError, match="read-only"):
            write(path)


def test_a_folder_keeps_its_other_files(old):
    folder(old)
    assert holds(old) == {"a": "new", "b": "new", "other": "old", "more/c": "old"}
    assert os.listdir(old.parent) == ["old"]


@pytest.mark.parametrize("why", ["works in it", "mounted", "no exchange", "no links"])
def test_a_folder_that_cannot_be_exchanged(why, old, monkeypatch):
    """Its files change instead; the folder itself stays."""
    if why == "works in it":
        monkeypatch.chdir(old / "more")
    elif why == "mounted":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == old)
    else:
        refuse(monkeypatch, "_exchange" if why == "no exchange" else "_link")
    before = old.stat().st_ino
    folder(old)
    assert old.stat().st_ino == before
    assert holds(old.parent) == {"old/a": "new", "old/b": "new", "old/other": "old", "old/more/c": "old"}


def refuse(monkeypatch, name):
    def refused(*arguments):
        raise OSError("This cannot be")

    monkeypatch.setattr(atomic, name, refused)


CALLS = ("mkdir", "link", "rename", "replace", "chmod", "open", "fsync", "stat", "unlink", "rmdir", "scandir")


class Faults:
    """The `at`-th call to the system raises, and with `on` all later ones; counts them."""

    def __init__(self, monkeypatch, at, on, error):
        self.at, self.on, self.error, self.count = at, on, error, 0
        for name in CALLS:
            monkeypatch.setattr(os, name, self.faulty(getattr(os, name)))
        monkeypatch.setattr(atomic, "_exchange", self.faulty(atomic._exchange))

    def faulty(self, call):
        def called(*arguments, **options):
            self.count += 1
            if self.count == self.at or (self.on and self.count > self.at):
                raise self.error
            return call(*arguments, **options)

        return called


OLD, NEW, OTHERS = {"old/a": "old", "old/b": "old"}, {"old/a": "new", "old/b": "new"}, {"old/other": "old"}
MORE = {"new/a": "new", "new/b": "new"}
WAYS = {  # how to write, where, and what of the two files changes
    "file": (file, "old/a", {"old/a": "new"}),
    "pair": (pair, "old", NEW),
    "folder": (folder, "old", NEW),
    "new folder": (folder, "new", MORE),
    "mounted": (folder, "old", NEW),
    "for ever": (folder, "old", NEW),
}


@pytest.mark.parametrize("way, error", [*((way, OSError) for way in WAYS), ("folder", KeyboardInterrupt)])
def test_whatever_fails_all_is_old_or_all_is_new(way, error, old, monkeypatch):
    """Each call to the system fails once, or it and all after it. The next writing works, and nothing else is left."""
    write, name, change = WAYS[way]
    monkeypatch.setattr(os, "fsync", lambda number: None)  # which takes the time
    before = {**OLD, **OTHERS, "old/more/c": "old"}
    if way == "mounted":
        monkeypatch.setattr(os.path, "ismount", lambda path: path == old)
    shutil.copytree(old, old.parents[1] / "begin")
    for at in range(1, 1000):
        with monkeypatch.context() as patched:
            faults = Faults(patched, at, way == "for ever", error(5, "A fault"))
            failed = attempt(write, old.parent / name, error)
        found = {path: text for path, text in holds(old.parent).items() if ".rwkv-" not in path}
        assert found in ([before, {**before, **change}] if failed else [{**before, **change}]), at
        write(old.parent / name)
        assert holds(old.parent) == {**before, **change}
        if faults.count < at:
            break
        for path in old.parent.iterdir():
            shutil.rmtree(path)
        shutil.copytree(old.parents[1] / "begin", old)
    assert 10 < at < 999


def attempt(write, path, kind):
    """Whether it raises."""
    try:
        write(path)
    except kind:
        return True
    return False


def test_many_threads_one_path(tmp_path):
    """None fails, and the file is one of theirs. The same for a folder."""
    states = [RWKVState(np.full((1, 2, 2, 4, 4), i, "float32"), np.full((1, 4, 1, 8), i, "float32")) for i in range(8)]
    names = [str(number) * 50 for number in range(8)]
    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda state: state.save(tmp_path / "a.state"), states))
            list(pool.map(lambda name: folder(tmp_path / "f", name), names))
        found = RWKVState.load(tmp_path / "a.state")
        assert len(np.unique(np.concatenate([found.wkv.ravel(), found.shift.ravel()]))) == 1
        assert len(set(holds(tmp_path / "f").values())) == 1
    assert sorted(os.listdir(tmp_path)) == ["a.state", "f"]


KILLED = """
    import sys, time
    from bert4keras_rwkv.atomic import atomic_file, atomic_folder
    with {kind}(sys.argv[1]) as unfinished:
        ({path}).write_text("half")
        print("half", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """Start a process that stops in the middle of writing."""
    running = []

    def begin(kind, path):
        code = "\n".join(line[4:] for line in KILLED.strip("\n").splitlines())
        code = code.format(kind=kind, path="unfinished" if kind == "atomic_file" else "unfinished / 'a'")
        running.append(subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE))
        assert running[-1].stdout.readline() == b"half\n"
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_what_a_killed_process_leaves_goes(writer, tmp_path):
    """With the next file written beside it, not while the process lives; whatever its number, as in a container."""
    for kind, name in (("atomic_file", "a"), ("atomic_folder", "f")):
        running = writer(kind, tmp_path / name)
        file(tmp_path / "b")
        assert len(list(tmp_path.glob(".rwkv-*"))) == 1
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert len(list(tmp_path.glob(".rwkv-*"))) == 1
        file(tmp_path / "b")
        assert holds(tmp_path) == {"b": "new"}


def test_another_machine_has_a_day(writer, tmp_path, monkeypatch):
    """Its locks may not be seen here."""
    running = writer("atomic_file", tmp_path / "a")
    running.kill()
    running.wait()
    monkeypatch.setattr(atomic, "_machine", lambda: "another")
    remove_unfinished(tmp_path)
    (left,) = tmp_path.iterdir()
    for path in (*left.rglob("*"), left):
        os.utime(path, (0, 0))
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_link_that_looks_unfinished_is_left_alone(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / ".rwkv-00000000-a.unfinished").symlink_to("there")
    os.utime(tmp_path / "there", (0, 0))
    remove_unfinished(tmp_path)
    assert (tmp_path / "there").is_dir() and not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize("check, write", [(check_file, file), (check_folder, folder)])
def test_a_check_leaves_no_trace_and_raises_what_writing_would(check, write, tmp_path):
    check(tmp_path / "a")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").write_text("a file")
    with pytest.raises((ValueError, OSError)) as told:
        check(tmp_path / "a" / "b")
    with pytest.raises(told.type):
        write(tmp_path / "a" / "b")
    if check is check_folder:
        check(tmp_path / "new" / "f")
        assert os.listdir(tmp_path) == ["a"]
    else:
        with pytest.raises(FileNotFoundError, match="no such folder"):
            check(tmp_path / "nowhere" / "a")


def test_a_writer_waits_for_nobody(tmp_path):
    """Two that write the same file at once both end."""
    with atomic_file(tmp_path / "a") as first:
        first.write_text("first")
        other = threading.Thread(target=file, args=(tmp_path / "a", "second"))
        other.start()
        other.join(10)
        assert (tmp_path / "a").read_text() == "second"
    assert holds(tmp_path) == {"a": "first"}


@pytest.mark.parametrize("said", [(errno.ENOSPC, "No space left on device"), ("write failed: errno = 28, error",)])
def test_a_full_disk_names_the_file(tmp_path, said):
    """The system's error that names none, and HDF5's, which has the system's in its own text."""
    failing = pytest.raises(OSError, match=r"No space left on device: '.*wanted\.h5'")
    with failing as info, atomic_file(tmp_path / "wanted.h5"):
        raise OSError(*said)
    assert info.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_a_full_disk_names_the_folder(tmp_path):
    """Not the unfinished file in it."""
    failing = pytest.raises(OSError, match=r"No space left on device: '[^']*/wanted'")
    with failing, atomic_folder(tmp_path / "wanted") as folder, atomic_file(folder / "model.weights.h5"):
        raise OSError(errno.ENOSPC, "No space left on device")


FORKED = """
import os, signal, sys, time
from bert4keras_rwkv import atomic
with atomic.locked(sys.argv[1]):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
started = time.monotonic()
with atomic.locked(sys.argv[1]):
    print(time.monotonic() - started < 30)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""


def test_a_child_that_was_forked_holds_no_lock(tmp_path):
    done = subprocess.run([sys.executable, "-c", FORKED, str(tmp_path / "lock")], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
