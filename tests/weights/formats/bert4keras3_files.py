"""Files as bert4keras3 saves an RWKV-6."""

import h5py
import numpy as np


def saved(official, path):
    """A file in bert4keras3's layout with the weights `official`, whose `ln_x` is spread over its two affine maps."""
    with h5py.File(path, "w") as file:

        def put(group, *arrays):
            for number, array in enumerate(arrays):
                file[f"layers/{group}/vars/{number}"] = array

        def norm(name, number):
            group = f"layer_normalization_{number}" if number else "layer_normalization"
            put(group, official[f"{name}.weight"], official[f"{name}.bias"])

        put("embedding", official["emb.weight"])
        put("dense", official["head.weight"].T)
        norm("blocks.0.ln0", 0)
        norm("ln_out", 5)
        for i in range(2):
            norm(f"blocks.{i}.ln1", 2 * i + 1)
            norm(f"blocks.{i}.ln2", 2 * i + 2)
            suffix = f"_{i}" if i else ""
            att = {name.removeprefix(f"blocks.{i}.att."): array for name, array in official.items()}
            time = f"time_mix{suffix}"
            put(time, att["time_maa_x"].ravel(), att["time_faaaa"])
            for j, letter in enumerate("wkvrg"):
                put(f"{time}/dense_x{letter}/dense_a", np.split(att["time_maa_w1"], 5, axis=1)[j])
                put(f"{time}/dense_x{letter}/dense_b", att["time_maa_w2"][j], att[f"time_maa_{letter}"].ravel())
            put(f"{time}/dense_w/dense_a", att["time_decay_w1"])
            put(f"{time}/dense_w/dense_b", att["time_decay_w2"], att["time_decay"].ravel())
            for letter, name in zip("rkvog", ("receptance", "key", "value", "output", "gate"), strict=True):
                put(f"{time}/dense_{letter}", att[f"{name}.weight"].T)
            inner_scale, inner_offset = np.float32([1, 2, 3, 4]), np.float32([4, 3, 2, 1])
            scale = att["ln_x.weight"].reshape(2, 4) / inner_scale
            offset = att["ln_x.bias"].reshape(2, 4) - inner_offset * scale
            put(f"{time}/group_norm/group_ln", inner_scale, inner_offset)
            put(f"{time}/group_norm", scale, offset)
            channel = f"channel_mix{suffix}"
            ffn = {name.removeprefix(f"blocks.{i}.ffn."): array for name, array in official.items()}
            put(channel, ffn["time_maa_k"].ravel(), ffn["time_maa_r"].ravel())
            for name in ("key", "receptance", "value"):
                put(f"{channel}/dense_{name}", ffn[f"{name}.weight"].T)
