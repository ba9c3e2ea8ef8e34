"""Converting a file as wide as a 7B model's, whose largest matrix is 65,536 x 4,096: time and memory of each command.

It has one layer. More layers take longer, and no more memory: what counts is the largest tensor.
"""

import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .checkpoints import Size, checkpoint

SIZE = Size(1, 4096)
TARGETS = {
    "`.safetensors`": ["a.safetensors"],
    "`.pth`, float32": ["a.pth", "--dtype", "float32"],
    "preset": ["preset"],
    "`.st`": ["a.st"],
    "fla folder": ["fla", "--to", "fla"],
    "GGUF, q8_0": ["a.gguf", "--dtype", "q8_0"],
}


def conversion(options, say):
    """Every conversion in a process of its own, round after round: seconds, and the most memory it held."""
    # In a process of its own, for the memory that this one has held once counts as its children's.
    with concurrent.futures.ProcessPoolExecutor(1) as apart:
        source = apart.submit(checkpoint, SIZE, options.cache).result()
    rows = {name: [] for name in TARGETS}
    for number in range(options.rounds):
        for name, arguments in TARGETS.items():
            say(f"  convert round {number + 1}/{options.rounds}: {name}")
            rows[name].append(converted(source, arguments))
    return {"series": [], "facts": {"stored_mb": source.stat().st_size / 1e6, "rows": rows}}


def converted(source, arguments):
    """{'seconds', 'peak_mb', 'written_mb'} of one command line."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        target, *options = arguments
        command = [sys.executable, "-m", "bert4keras_rwkv", "convert", str(source), str(Path(folder, target)), *options]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            raise RuntimeError(f"It failed: {' '.join(command)}")
        written = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_mb": usage.ru_maxrss * unit / 1e6, "written_mb": written / 1e6}
