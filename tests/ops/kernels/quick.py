"""Libraries of native kernels built fast, without optimisation, and with changed sources."""

import os
import shutil
import stat
import sys

from bert4keras_rwkv.ops.kernels import library


def compiler(folder, log=None):
    """A program in `folder` that is the C++ compiler without optimisation; it adds a line to `log` for each call."""
    found, path = library._compiler(), folder / "quick-c++"
    lines = [
        f"#!{sys.executable}",
        "import os, sys",
        "arguments = ['-O0' if x == '-O3' else x for x in sys.argv[1:]]",
        f"log = {str(log)!r}" if log else "log = os.devnull",
        "open(log, 'a').write(' '.join(arguments) + '\\n')",
        f"os.execv({found[0]!r}, [*{found!r}, *arguments])",
    ]
    path.write_text("\n".join(lines))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def changed_sources(folder, file, old, new):
    """A copy of the kernels' sources in which one text of a file is another."""
    shutil.copytree(library.SOURCES, folder)
    text = (folder / file).read_text()
    assert text.count(old) == 1, (text.count(old), old)
    (folder / file).write_text(text.replace(old, new))
    return folder


def environment(folder, **variables):
    """That of a process whose cache folder is `folder`."""
    return {**os.environ, "XDG_CACHE_HOME": str(folder), **variables}
