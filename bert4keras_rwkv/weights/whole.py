"""Files and folders appear under their name whole or not at all."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path):
    """A path beside `path` to write to; it takes the name `path` when the block ends well, else it is removed.

    Whatever ends the block early, a full disk or Ctrl-C too, leaves `path` as it was.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(folder):
    """The same for a folder of files: yields a folder to fill; its files move to `folder` when the block ends well.

    A `folder` that exists keeps its other files.
    """
    folder = Path(folder).absolute()
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if folder.is_dir():
            for file in sorted(unfinished.iterdir()):
                os.replace(file, folder / file.name)
        else:
            os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
