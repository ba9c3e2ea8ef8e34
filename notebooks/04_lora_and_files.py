# %% [markdown]
# # 4 · LoRA and state, and the files they live in
#
# LoRA 加状态，以及保存它们的文件
#
# LoRA leaves every matrix `W` as it is and trains two thin ones beside it: `W + A B`, with `A` and `B` of rank 4. It
# goes together with state tuning. Both are kept in an *adapter file*, apart from the model, which many adapters share.
#
# LoRA 不动原来的矩阵 `W`，只在旁边训练两个细长的矩阵：`W + A B`，这里秩为 4。它可以和状态微调一起用。
# 两者都存在一个*适配器文件*里，与模型分开；一个模型可以配许多适配器。

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or "tensorflow", "torch"

import itertools
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

from bert4keras_rwkv.models.rwkv import RWKV

# %% [markdown]
# ## Texts
#
# Weather reports. The towns of the held-out ones are in no report that it is trained on.
#
# 天气预报；留出的城市训练时没有出现。

# %%
TOWNS = "Oslo Rome Paris Boston Berlin London Cairo Delhi Lima Tokyo Dublin Madrid Prague Vienna Seattle Austin".split()
UNSEEN = "Lisbon Denver Athens Geneva".split()
SKIES, WINDS, LENGTH = ["rain", "sun", "snow", "fog"], ["north", "south", "east", "west"], 36


def reports(towns, count):
    some = np.random.default_rng(0).permutation(list(itertools.product(towns, SKIES, SKIES, WINDS)))[:count]
    return [f"Weather in {t}: {a} in the morning, {b} in the evening, wind from the {w}.\n\n" for t, a, b, w in some]


def rows(texts, tokenizer):
    """Ids (B, LENGTH), padded with 0 on the left."""
    ids = np.zeros((len(texts), LENGTH), "int32")
    for row, text in zip(ids, map(tokenizer.encode, texts), strict=True):
        row[LENGTH - len(text) :] = text
    return ids


print(reports(TOWNS, 1)[0])

# %% [markdown]
# ## Tuning
#
# Only `A`, `B` and the state train. · 只有 `A`、`B` 和状态参加训练。

# %%
EPOCHS, BATCH = 6, 8
keras.utils.set_random_seed(0)
model = RWKV.from_preset("finch-jargon", dtype="float32")
model.enable_lora(rank=4, targets=("receptance", "key", "value", "gate", "output"))
model.enable_state_tuning()
train, held_out = rows(reports(TOWNS, 64), model.tokenizer), rows(reports(UNSEEN, 16), model.tokenizer)

trainer = model.training_model()
steps = EPOCHS * len(train) // BATCH
trainer.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(2e-2, steps), weight_decay=0.0))
before = trainer.evaluate(held_out, batch_size=BATCH, verbose=0)
told = trainer.fit(
    train, validation_data=(held_out,), batch_size=BATCH, epochs=EPOCHS, validation_batch_size=BATCH, verbose=0
).history

plt.figure(figsize=(6, 2.6))
plt.plot(np.arange(EPOCHS) + 0.5, told["loss"], "o-", label="training")
plt.plot(np.arange(EPOCHS + 1), [before, *told["val_loss"]], "s-", label="held out")
plt.xlabel(f"epochs of {len(train) // BATCH} steps")
plt.ylabel("loss (nats a token)")
plt.legend()
plt.grid(alpha=0.3)
plt.show()

# %%
print(model.generate(f"Weather in {UNSEEN[0]}:", max_length=40, sampling="greedy").split("\n")[0])

# %% [markdown]
# ## Files
#
# `save_adapter` writes what was tuned, exactly, so that tuning can go on from it. The base does not change: a hundred
# tasks are one model and a hundred small files. · `save_adapter` 原样写下训练过的部分，之后可以接着训练。
# 底座不变：一百个任务就是一个模型加一百个小文件。

# %%
model.save_adapter("weather.safetensors")
model.save_state(model.tuned_state(), "weather.pth", layout="pth")  # the state alone, as RWKV-LM and RWKV-PEFT read it
model.save_to_preset("merged")  # a model by itself, with the LoRA added to its weights
paths = ["merged/model.weights.h5", "weather.safetensors", "weather.pth"]
sizes = [Path(path).stat().st_size / 1e6 for path in paths]
for path, size in zip(paths, sizes, strict=True):
    print(f"{path:26} {size:6.2f} MB")

# %% [markdown]
# ## Into a fresh model
#
# `scale` multiplies what the LoRA adds: 0 switches it off (the state stays), 1 is as it was tuned, more is too much.
#
# 加载到一个全新的模型里。`scale` 乘在 LoRA 上：0 等于关掉 LoRA（状态仍在），1 就是训练时的样子，再大就过头了。

# %%
fresh = RWKV.from_preset("finch-jargon", dtype="float32")
fresh.load_adapter("weather.safetensors")
checker = fresh.training_model()
checker.compile()


def loss():
    return checker.evaluate(held_out, batch_size=BATCH, verbose=0)


scales = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
losses = []
for scale in scales:
    fresh.load_adapter("weather.safetensors", scale=scale)
    losses.append(loss())

plt.figure(figsize=(6, 2.4))
plt.plot(scales, losses, "o-")
plt.axhline(before, color="gray", linestyle="--", label="untuned")
plt.xlabel("scale of the LoRA")
plt.ylabel("held-out loss\n(nats a token)")
plt.ylim(0, None)
plt.legend()
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Merged
#
# `merge_adapter` adds the LoRA to the weights and starts it anew at zero, so that another can be learned on top.
#
# `merge_adapter` 把 LoRA 加进权重，再让它从零开始，这样还可以在上面再学一个。

# %%
fresh.load_adapter("weather.safetensors")
loaded = loss()
fresh.merge_adapter()
merged = loss()
print(f"held-out loss: tuned {told['val_loss'][-1]:.4f}, loaded {loaded:.4f}, merged {merged:.4f}")

# %% [markdown]
# ## Did it work?
#
# 成功了吗？

# %%
print(f"held-out loss: {before:.2f} before, {loaded:.2f} from a file of {sizes[1]:.2f} MB (nats a token)")
assert loaded < before / 2 and abs(loaded - told["val_loss"][-1]) < 1e-3 and abs(merged - loaded) < 1e-3
