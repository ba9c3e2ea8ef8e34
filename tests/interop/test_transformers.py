"""`transformers` loads the folders that `convert --to hf` writes of an RWKV-4, and computes our logits."""

import numpy as np
import pytest
from keras import ops

from bert4keras_rwkv.cli import main
from bert4keras_rwkv.models import build_transformer_model
from bert4keras_rwkv.weights import write_pth
from tests.official import official_weights

pytestmark = [
    pytest.mark.interop,
    pytest.mark.slow,
    pytest.mark.backend_free,
    pytest.mark.filterwarnings("ignore"),  # of transformers, about itself and what it imports
]


def test_rwkv4(tmp_path, rng):
    """1e-4 of the largest logit: float32 sums in another order. Eight layers: it rescales after every six."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    write_pth(tmp_path / "a.pth", official_weights("4", rng, layers=8, heads=1, head_size=16))
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    ids = rng.integers(0, 32, (1, 40))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    for path in (tmp_path / "a.pth", tmp_path / "hf"):
        ours = ops.convert_to_numpy(build_transformer_model(checkpoint_path=path).forward(ids.astype("int32"))[0])
        assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
