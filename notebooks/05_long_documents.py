# %% [markdown]
# # 5 · Documents longer than memory
#
# 比内存还长的文档
#
# To train on a long document, read it a segment at a time: each step takes the state that the step before left, and the
# gradient ends where the segment does (truncated back-propagation through time). The memory of a step depends on the
# segment, not on the document. What stood far back is not lost: it is in the state.
#
# 训练长文档时，一次读一段：每一步接着上一步留下的状态往下读，梯度只在段内回传（截断的时间反向传播）。
# 一步用多少内存只看段长，不看文档多长。前面很远的内容并没有丢，它在状态里。

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or "tensorflow", "torch"

import keras
import matplotlib.pyplot as plt
import numpy as np

from bert4keras_rwkv.models.rwkv import RWKV
from bert4keras_rwkv.training import PackedBatches, keras_dataset

keras.utils.set_random_seed(0)
model = RWKV.from_preset("finch-jargon", dtype="float32", packed=True)

# %% [markdown]
# ## Documents
#
# Machine logs. Who keeps a log, of which machine, and where: that is drawn for each and repeated to its end. Who has
# read the beginning knows the names in all the rest.
#
# 机器日志。谁记的、哪台机器、在哪里，每篇随机抽一次，从头到尾反复出现。读过开头的人，后面的名字就都知道了。

# %%
LENGTH, SEGMENT, ROWS = 256, 32, 4  # tokens of the longest document and of a segment, documents read side by side
some = np.random.default_rng(0)
EVENTS = [
    "{who} restarted the {what} at {where}.",
    "The {what} at {where} is down; {who} was called.",
    "{who} reads the source of the {what}.",
    "Nobody but {who} may touch the {what}.",
    "The {what} works again, says {who} of {where}.",
]


PEOPLE = ["Guy", "Mel", "Stallman", "Ritchie", "Steele", "Thompson"]
MACHINES = ["mainframe", "printer", "kernel", "network", "terminal", "compiler"]
PLACES = ["MIT", "Berkeley", "Stanford", "DEC", "Bell", "CMU"]


def log(length):
    """The ids of a document."""
    who, what, where = (some.choice(names) for names in (PEOPLE, MACHINES, PLACES))
    lines = [f"Log of the {what} at {where}, kept by {who}."]
    lines += [some.choice(EVENTS).format(who=who, what=what, where=where) for _ in range(40)]
    return model.tokenizer.encode(" ".join(lines))[:length]


train = [log(some.integers(120, LENGTH)) for _ in range(60)]
held_out = np.array([log(LENGTH) for _ in range(ROWS)])
print(model.tokenizer.decode(train[0][:90]), "...")

# %% [markdown]
# ## Batches that go on
#
# With `carry=True` row `b` of a batch goes on where row `b` of the batch before ended, and `Reset` is 1 where a
# document begins. Each colour is a document.
#
# `carry=True`：每个批次的第 `b` 行接着上个批次的第 `b` 行；`Reset` 为 1 处是新文档的开头。一种颜色是一篇文档。

# %%
batches = PackedBatches(train, SEGMENT, ROWS, seed=0, carry=True)
resets = np.concatenate([batches.batch(number)["Reset"] for number in range(20)], axis=1)

plt.figure(figsize=(8, 1.6))
documents = np.cumsum(resets, axis=1) + 5 * np.arange(ROWS)[:, None]
plt.imshow(documents, aspect="auto", cmap="tab20", interpolation="nearest")
for number in range(1, 20):
    plt.axvline(number * SEGMENT - 0.5, color="white", linewidth=0.8)
plt.xlabel("position in the row (tokens); white lines: batches")
plt.ylabel("row")
plt.yticks(range(ROWS))
plt.show()

# %% [markdown]
# ## The trainer
#
# `segment_trainer` is a Keras model that holds the state of each row between steps. To see what that is worth, the same
# segments are also read without it: each begins with nothing read.
#
# `segment_trainer` 是一个 Keras 模型，每行的状态在各步之间由它保存。为了看出它的价值，
# 同样的段落再读一遍，但每段都从零开始。

# %%
trainer = model.segment_trainer(ROWS)
STEPS = len(batches)
trainer.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(1e-3, STEPS), weight_decay=0.01))


def losses(carry):
    """The loss of each segment of the held-out documents."""
    trainer.reset_states()
    found = []
    for start in range(0, LENGTH, SEGMENT):
        ids = held_out[:, start : start + SEGMENT]
        reset = np.zeros_like(ids)
        reset[:, 0] = start == 0 or not carry
        found.append(float(trainer.test_on_batch([ids, reset])))
    return np.array(found)


before = {carry: losses(carry) for carry in (True, False)}
trainer.reset_states()
told = trainer.fit(keras_dataset(batches), steps_per_epoch=STEPS, epochs=1, shuffle=False, verbose=0)
after = {carry: losses(carry) for carry in (True, False)}
print(f"{STEPS} steps of {ROWS} x {SEGMENT} tokens")

# %% [markdown]
# ## What is carried helps
#
# With the state the names are known behind the first segment. Without it, each segment meets them anew, and then
# repeats them itself: so the gap is small. (The axes differ.)
#
# 带着状态，第一段以后那些名字就都认识了；不带状态，每一段都要重新认识一遍，然后在段内重复。
# 所以差距不大。（两图的纵轴不同。）

# %%
places = SEGMENT * np.arange(LENGTH // SEGMENT) + SEGMENT / 2
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
for axis, title, found in zip(axes, ["before training", "after"], [before, after], strict=True):
    axis.plot(places, found[False], "o--", color="tab:gray", label="each segment from nothing")
    axis.plot(places, found[True], "o-", color="tab:blue", label="state carried")
    axis.set(title=title, xlabel="position in the document (tokens)")
    axis.grid(alpha=0.3)
axes[0].set_ylabel("held-out loss\n(nats a token)")
axes[0].legend(fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# ## Did it work?
#
# The losses of all segments together are that of one long pass, which `training_model` makes with the memory of one.
#
# 各段的损失合起来，就等于一口气读完整篇的损失；后者用 `training_model` 算，内存也就要按整篇来算。

# %%
whole = model.training_model()
whole.compile()
reset = np.zeros_like(held_out)
reset[:, 0] = 1
one_pass = float(whole.test_on_batch([held_out, reset]))
counts = np.full(len(after[True]), SEGMENT)
counts[0] -= 1  # nothing predicts the first token
in_segments = np.average(after[True], weights=counts)
print(f"one pass {one_pass:.5f}, in segments {in_segments:.5f}")
assert abs(one_pass - in_segments) < 1e-4

carried, anew = after[True][1:].mean(), after[False][1:].mean()
print(f"held-out loss behind the first segment: {carried:.2f} with the state carried, {anew:.2f} without")
print(f"held-out loss: {before[True].mean():.2f} before, {after[True].mean():.2f} after (nats a token)")
assert carried < anew and after[True].mean() < before[True].mean() - 0.5
