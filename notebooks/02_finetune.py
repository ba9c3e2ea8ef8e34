# %% [markdown]
# # 2 · Fine-tune on texts of your own
#
# 用自己的文本微调
#
# From texts to TFRecord files, to padded batches by `tf.data`, to Keras' `fit`. The texts are what every Python
# brings along: the documentation of its standard library. The model has never read any of it.
#
# 从文本到 TFRecord 文件，再用 `tf.data` 做成填充好的批次，最后交给 Keras 的 `fit`。
# 文本取自每个 Python 都自带的东西：标准库的文档字符串。模型从没读过这些。

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or "tensorflow", "torch"

import importlib
import inspect
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

from bert4keras_rwkv.models.rwkv import RWKV
from bert4keras_rwkv.training import RecordFile, encode_documents, record_dataset, write_records

keras.utils.set_random_seed(0)
model = RWKV.from_preset("finch-jargon", dtype="float32")

# %% [markdown]
# ## Texts
#
# One in eight is held out: never trained on, only measured with. · 每八篇留出一篇，不参加训练，只用来测量。

# %%
MODULES = "argparse collections csv datetime email.message functools itertools json logging math os pathlib".split()
MODULES += "random re shutil socket statistics string subprocess tarfile tempfile textwrap threading zipfile".split()


def documentation(module):
    """The docstrings of a module's functions and classes, and of their methods."""
    found = {}
    for name, thing in inspect.getmembers(importlib.import_module(module)):
        if not name.startswith("_") and (inspect.isroutine(thing) or inspect.isclass(thing)):
            parts = inspect.getmembers(thing, inspect.isroutine) if inspect.isclass(thing) else []
            for key, part in [(name, thing), *((f"{name}.{n}", p) for n, p in parts if not n.startswith("_"))]:
                found[key] = inspect.getdoc(part) or ""
    return [f"{key}: {text}" for key, text in found.items() if len(text) > 60]


texts = list(dict.fromkeys(text for module in MODULES for text in documentation(module)))
held_out, train = texts[::8], [text for number, text in enumerate(texts) if number % 8]
print(len(train), "texts to train with,", len(held_out), "held out. One of them:\n")
print(train[0][:200])

# %% [markdown]
# ## Files
#
# TFRecord, written without TensorFlow: one record a text, its token ids. The command `bert4keras-rwkv data` does the
# same with files. · 写 TFRecord 不需要 TensorFlow：一条记录就是一篇文本的 token id。
# 命令行 `bert4keras-rwkv data` 也能做。

# %%
for name, some in {"train": train, "held_out": held_out}.items():
    write_records(f"{name}.tfrecord", encode_documents(some, model.tokenizer))
    print(f"{name}: {Path(f'{name}.tfrecord').stat().st_size / 1000:.0f} kB")
sizes = [len(document.ids) for document in RecordFile("train.tfrecord")]

LENGTH, BATCH = 48, 8
plt.figure(figsize=(6, 2.2))
plt.hist(np.clip(sizes, 0, 400), bins=50)
plt.axvline(LENGTH, color="tab:red", label=f"cut at {LENGTH}")
plt.xlabel("tokens of a text (longer than 400: at 400)")
plt.ylabel("texts")
plt.legend()
plt.show()

# %% [markdown]
# ## Batches
#
# Every batch has one shape, so one program is compiled, once. Shorter texts are padded with 0 on the *left*: the text
# ends where the row ends, and what is generated next stands right behind it. Look at the dark left edge.
#
# 每个批次形状都一样，所以程序只编译一次。短的文本在*左边*补 0：文本的结尾就是行的结尾，接着写的内容紧跟其后。
# 看图中左边深色的部分。

# %%
batches = record_dataset("train.tfrecord", BATCH, lengths=LENGTH, shuffle=len(train), seed=0)
checks = record_dataset("held_out.tfrecord", BATCH, lengths=LENGTH)
rows = np.asarray(next(iter(batches.as_numpy_iterator()))["Input-Token"])

plt.figure(figsize=(8, 1.8))
plt.imshow(np.where(rows == 0, np.nan, rows), aspect="auto", interpolation="nearest", cmap="viridis")
plt.gca().set_facecolor("black")
plt.colorbar(label="token id")
plt.xlabel("position (tokens); black: padding")
plt.ylabel("row")
plt.show()

# %% [markdown]
# ## Training
#
# `training_model` shares the model's weights and gives the loss itself: the mean surprise about each next token, in
# nats. It never keeps the logits of a whole batch. · `training_model` 与模型共用权重，直接给出损失：
# 预测每个下一个 token 时的平均“意外”，单位是 nat；它从不保留整个批次的 logits。

# %%
EPOCHS, STEPS, CHECKS = 6, 10, 4
trainer = model.training_model()
trainer.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(5e-4, EPOCHS * STEPS), weight_decay=0.01))

QUESTIONS = ["read:", "Path.open:", "split:"]


def show_texts():
    for text in model.generate(QUESTIONS, max_length=32, sampling="greedy"):
        print("·", " ".join(text.split()))


before = trainer.evaluate(checks, steps=CHECKS, verbose=0)
print(f"before: a held-out loss of {before:.2f} nats a token. It writes:")
show_texts()

# %%
told = trainer.fit(
    batches,
    epochs=EPOCHS,
    steps_per_epoch=STEPS,
    validation_data=checks,
    validation_steps=CHECKS,
    shuffle=False,
    verbose=0,
).history
steps = STEPS * np.arange(1, EPOCHS + 1)

plt.figure(figsize=(6, 2.6))
plt.plot(steps - STEPS / 2, told["loss"], "o-", label="training")
plt.plot([0, *steps], [before, *told["val_loss"]], "s-", label="held out")
plt.xlabel(f"steps of {BATCH} texts")
plt.ylabel("loss (nats a token)")
plt.legend()
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Did it work?
#
# 成功了吗？

# %%
show_texts()
after = told["val_loss"][-1]
print(f"perplexity of texts never trained on: {np.exp(before):.0f} before, {np.exp(after):.0f} after")
print(f"held-out loss: {before:.2f} before, {after:.2f} after (nats a token)")
assert after < before - 0.3
