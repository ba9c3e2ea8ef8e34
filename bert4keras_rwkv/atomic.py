"""Files and folders appear under their name whole or not at all, and only regular files are replaced.

What is not finished stands beside its place, in a folder with a locked file. The lock ends with the process, however
that ends, so that a later writer knows what nobody will finish, and removes it.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

PREFIX, SUFFIX = ".rwkv-", ".unfinished"
LOCK, NEW, OLD = "lock", "new", "old"  # what stands in a folder of unfinished files
A_DAY = 24 * 60 * 60
ONE_AT_A_TIME = threading.Lock()  # threads that change the same folder
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux


@contextmanager
def atomic_file(path):
    """A path to write to; the file takes the name `path` when the block ends well, else it is removed.

    Whatever ends the block early, a full disk, Ctrl-C or a kill too, leaves `path` as it was. A file that is replaced
    leaves its permissions and owner to the new one; of a link it is the file that it leads to.

    Raises:
        ValueError: `path` is a folder, a device, a pipe, a socket.
        OSError: it is read-only, or nothing can be written beside it.
    """
    with atomic_files(path) as (unfinished,):
        yield unfinished


def check_room(path, size):
    """Raise the OSError of writing so many bytes to a path, before a library does that takes none well."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_files(*paths):
    """The same for files that belong together: a list of paths to write to. They take their names together.

    Should the process be killed in between, the first is missing, and does not stand beside others of another writing.
    """
    places = [_file(path) for path in paths]
    with _naming(places[0]), ExitStack() as stages:
        new = [stages.enter_context(_stage(place.parent)) / NEW / place.name for place in places]
        yield new
        for unfinished, place in zip(new, places, strict=True):
            _on_disk(unfinished)
            _take_after(unfinished, place)
        if len(places) == 1:
            os.replace(new[0], places[0])
        else:
            _replace_all([(one, place, one.parent.parent / OLD) for one, place in zip(new, places, strict=True)])


@contextmanager
def atomic_folder(folder):
    """A folder to fill, with files; it takes the name `folder` when the block ends well, else it is removed.

    A `folder` that exists keeps its other files, and becomes the new one in one step. One that cannot be exchanged, a
    mount point or what this process works in, gets file after file, and all of its own back if one of them fails.

    Raises:
        ValueError: `folder` is no folder, or one of the names in it does not belong to a file.
        OSError: nothing can be written there.
    """
    folder = _folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    with _naming(folder), _stage(folder if _stays(folder) else folder.parent) as stage:
        unfinished = stage / NEW / folder.name
        unfinished.mkdir()
        yield unfinished
        names = sorted(path.name for path in unfinished.iterdir())
        for name in names:
            _on_disk(unfinished / name)
            _take_after(unfinished / name, _file(folder / name, followed=False))
        with ONE_AT_A_TIME:
            if not folder.is_dir():
                os.rename(unfinished, folder)
            elif _stays(folder) or not _exchanged(unfinished, folder):
                _replace_all([(unfinished / name, folder / name, stage / f"{OLD} {name}") for name in names])


def check_file(path):
    """Raise now what `atomic_file` would, for a command that takes long before it writes."""
    with _stage(_file(path).parent):
        pass


def check_folder(folder):
    """Raise now what `atomic_folder` would. Nothing is made."""
    folder = _folder(folder)
    there = _there(folder)
    with _stage(folder.parent if there == folder and not _stays(folder) else there):
        pass


def remove_unfinished(folder):
    """Remove what processes that ended, by `kill -9` or with the machine, did not finish in `folder`.

    What another boot or machine wrote must be a day old, for on some network file systems its locks are not seen here.
    """
    for stage in Path(folder).glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process removes it, or it is not ours to remove
            ours = stage.name.startswith(f"{PREFIX}{_machine()}-")
            if stage.is_symlink() or not (ours or time.time() - _touched(stage) > A_DAY):
                continue
            with _opened(stage / LOCK) as lock:
                if _locks(lock):
                    shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def locked(path):
    """While it lasts no other process, nor thread, is in such a block for the file `path`, which is made."""
    with _opened(path) as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            _locks(lock, wait=True)
        yield


@contextlib.contextmanager
def locked_if_free(path):
    """Whether this has the lock of `locked`, without waiting for it; true where there can be none."""
    with contextlib.ExitStack() as stack:
        free = True
        with contextlib.suppress(OSError):
            free = _locks(stack.enter_context(_opened(path)))
        yield free


def _file(path, followed=True):
    """Where a file is written: `path`, or what the link there leads to. Raises if something else stands there."""
    path = Path(path)
    place = Path(os.path.realpath(path)) if followed else path
    parent = os.path.realpath(path.parent)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return place
    kind = KINDS.get(stat.S_IFMT(mode))
    if parent == "/dev" or parent.startswith("/proc/"):  # `/dev/stdout` may be a file that the shell has open
        kind = kind or "a stream"
    if kind == "a folder":
        raise ValueError(f"'{path}' is a folder, and a file is to be written there. Give another name.")
    if kind is not None:
        raise ValueError(
            f"'{path}' is {kind}, and only files are replaced, by others that are whole. Write to a file, then copy it."
        )
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "The file is read-only", str(path))
    return place


def _folder(folder):
    """The real path of a folder to write to. Raises if something else stands there."""
    place = Path(os.path.realpath(folder))
    there = _there(place)
    if not there.is_dir():
        raise ValueError(f"'{there}' is there already, and it is no folder. Give another name.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "The folder is read-only", str(there))
    return place


def _there(path):
    """`path`, or the nearest folder above it that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def _stays(folder):
    """Whether a folder must remain what it is: no other can take its place, or this process works in it."""
    if not folder.is_dir():
        return False
    here = Path(os.path.realpath("/proc/self/cwd" if sys.platform == "linux" else os.curdir))  # it may be gone
    return os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK) or here.is_relative_to(folder)


@contextmanager
def _naming(path):
    """While it lasts, an OSError of a full disk, or of a file that is not finished, names `path`.

    HDF5 says what the system said in the middle of its own text.
    """
    try:
        yield
    except OSError as error:
        number = error.errno or next(map(int, re.findall(r"errno = (\d+)", str(error))), None)
        full = error.filename is None and number in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None))
        if number is None or not (full or SUFFIX in str(error.filename)):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def _stage(where):
    """A folder in `where` for what is unfinished, locked; it goes when the block ends."""
    if not where.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder to write to", str(where))
    remove_unfinished(where)
    with ExitStack() as stack:
        try:
            stage = _begin(where, stack)
        except OSError as error:  # which names a file of ours
            raise OSError(error.errno, error.strerror, str(where)) from error
        yield stage


def _begin(where, stack):
    """A new folder in `where`, locked until `stack` ends, when it is removed."""
    while True:
        folder = Path(tempfile.mkdtemp(SUFFIX, f"{PREFIX}{_machine()}-", where))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # it was removed by a process that came between
            lock = stack.enter_context(_opened(folder / LOCK))
            with contextlib.suppress(OSError):  # a file system without locks
                _locks(lock, wait=True)
            if os.path.samestat(os.stat(folder / LOCK), os.fstat(lock)):
                (folder / NEW).mkdir()
                return folder


@contextmanager
def _opened(path):
    """The number of a file that is open for locking."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _open.add(lock)
    try:
        yield lock
    finally:
        if lock in _open:
            _open.remove(lock)
            os.close(lock)


_open = set()  # files that this process has opened for locking


def _close_in_child():
    """A child that is forked would keep its parent's locks, for as long as it lives."""
    for lock in _open:
        os.close(lock)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _locks(lock, wait=False):
    """Lock an open file if no other process has, and say so; False on a platform without such locks."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@functools.cache
def _machine():
    """The name of this boot of this machine, which is that of its containers too."""
    try:
        said = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")
    except OSError:
        said = platform.node()
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def _touched(folder):
    """When something was last written to a folder of unfinished files."""
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _on_disk(path):
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _take_after(new, old):
    """Give a file or folder the permissions and, where that is allowed, the owner of the one that it replaces."""
    if not old.exists():
        return
    known = old.stat()
    if hasattr(os, "chown") and (known.st_uid, known.st_gid) != (new.stat().st_uid, new.stat().st_gid):
        with contextlib.suppress(PermissionError):
            os.chown(new, known.st_uid, known.st_gid)
    os.chmod(new, stat.S_IMODE(known.st_mode))


def _replace_all(moves):
    """Move each new file of (new, place, old) to its place, or none. What was there is at `old` meanwhile."""
    with ExitStack() as undo:
        for _, place, old in moves:
            undo.callback(_put_back, old, place, os.path.lexists(place))
            if os.path.lexists(place):
                os.rename(place, old)
        for new, place, _ in reversed(moves):
            os.rename(new, place)
        undo.pop_all()


def _put_back(old, place, was_there):
    if os.path.lexists(old):
        os.replace(old, place)
    elif not was_there:
        place.unlink(missing_ok=True)


def _exchanged(new, folder):
    """Let `folder` and `new`, with all that it lacks of `folder`, change places. False if that cannot be; then nothing
    has changed but for links in `new`.
    """
    try:
        _link(folder, new)
        _take_after(new, folder)
        _exchange(new, folder)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        _link(new, folder)  # what somebody wrote meanwhile
    return True


def _link(source, target):
    """Let the files of a folder that another lacks stand in that, too."""
    with os.scandir(source) as entries:
        for entry in entries:
            there = Path(target, entry.name)
            if entry.is_dir(follow_symlinks=False):
                if not there.is_dir():
                    there.mkdir()
                    shutil.copystat(entry, there)
                _link(entry.path, there)
            elif os.path.lexists(there):
                continue
            elif entry.is_symlink():
                os.symlink(os.readlink(entry), there)
            else:
                os.link(entry, there)


def _exchange(one, other):
    """Two folders change their names in one step, where the system can."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "Folders cannot be exchanged here")
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno() or errno.ENOSYS, "Folders cannot be exchanged here")
