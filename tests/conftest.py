"""What every test gets: quiet and small backends, a fixed seed, and the choice of which tests run here.

The backend is `KERAS_BACKEND` in the environment, one process a backend (`make test` starts them all).
"""

import functools
import gc
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

# Set before any backend is imported. Two test processes share two cores, and the tensors are tiny.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KERAS_BACKEND", "jax")
# Hundreds of small programs are compiled once and run once: compiling, not running, is what takes the time. XLA's older
# way to emit a fusion takes half as long as its new one.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false",
)
# Traced programs are many objects that live long: looking through them again and again took a tenth of the time.
gc.set_threshold(50_000, 20, 20)

# Many tests compile the same program again, each for a model of its own.
COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Nothing that an earlier run compiled is used, or kept.
os.environ["BERT4KERAS_RWKV_CACHE"] = "off"

SEED = 20240424
OTHER_PARTS = pytest.StashKey[bool]()  # whether all the files that were asked for belong to other parts


@functools.cache
def awake():
    """Keras, on a backend that does not optimise what runs once."""
    import keras

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    return keras


def pytest_addoption(parser):
    parser.addoption(
        "--backend-free",
        choices=("also", "only", "skip"),
        default="also",
        help="tests marked backend_free: run them with the others (default), run nothing else, or leave them out",
    )
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption("--gpu", action="store_true", help="on a GPU: without the tests marked cpu (make test-gpu)")
    parser.addoption("--part", default="1/1", help="2/3: the second third of the files, for a process of its own")


def pytest_collection_modifyitems(config, items):
    """Deselect by --backend-free and --slow, and skip tests whose oracle folder is not there.

    Other implementations run beside ours on PyTorch, which is theirs too; on the other backends that is slow.
    """
    choice = config.getoption("--backend-free")
    kept, dropped = [], []
    number, parts = map(int, config.getoption("--part").split("/"))
    ours = sorted({item.path for item in items})[number - 1 :: parts]
    config.stash[OTHER_PARTS] = bool(items) and not ours
    for item in items:
        free = item.get_closest_marker("backend_free") is not None
        slow = item.get_closest_marker("slow") is not None or (not free and _elsewhere(item))
        wanted = item.path in ours and (choice == "also" or free == (choice == "only"))
        wanted = wanted and not (config.getoption("--gpu") and item.get_closest_marker("cpu"))
        (kept if wanted and (config.getoption("--slow") or not slow) else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept
    if not os.environ.get("RWKV_ORACLES"):
        without = pytest.mark.skip(reason="RWKV_ORACLES does not name the folder of recorded answers")
        for item in items:
            if item.get_closest_marker("oracle"):
                item.add_marker(without)


def pytest_sessionfinish(session, exitstatus):
    """A part may have nothing to do, where few files were asked for."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(OTHER_PARTS, False):
        session.exitstatus = pytest.ExitCode.OK


def _elsewhere(item):
    """Whether a test is meant for other backends than this one: a comparison with a forward of others for PyTorch."""
    live = [("torch",)] if item.get_closest_marker("live") is not None else []
    wanted = live + [marker.args for marker in item.iter_markers("on")]
    return any(os.environ["KERAS_BACKEND"] not in backends for backends in wanted)


def pytest_report_header():
    return f"keras backend: {os.environ['KERAS_BACKEND']}; oracles: {os.environ.get('RWKV_ORACLES') or 'none'}"


@pytest.fixture(autouse=True)
def fixed_seed(request):
    """The same random numbers in every run; a backend is woken only for tests that use one."""
    np.random.seed(SEED)
    if not request.node.get_closest_marker("backend_free"):
        awake().utils.set_random_seed(SEED)


@pytest.fixture(autouse=True)
def uncompiled(request):
    """In a test marked `once`, on TensorFlow, what would be compiled runs operation by operation, Keras' steps too.

    With --slow it is compiled.
    """
    if (
        not request.node.get_closest_marker("once")
        or os.environ["KERAS_BACKEND"] != "tensorflow"
        or request.config.getoption("--slow")
    ):
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True, scope="module")
def collected():
    """The models of a file, and the programs they hold, are gone after it."""
    yield
    gc.collect()


@pytest.fixture
def rng():
    """A NumPy generator with a fixed seed."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def oracles():
    """The folder of recorded answers. Only for tests marked `oracle`."""
    return Path(os.environ["RWKV_ORACLES"])


@pytest.fixture
def tiny_config():
    """An RWKV-6 small enough for a test: 2 layers, 2 heads of 8, 32 ids."""
    from bert4keras_rwkv.config import RWKVConfig

    return RWKVConfig(
        model="rwkv6",
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_head_size=8,
        intermediate_size=32,
        decomposer_size=4,
        time_decay_size=8,
    )
