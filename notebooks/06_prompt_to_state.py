# %% [markdown]
# # 6 · A prompt becomes a state
#
# 把提示词变成状态
#
# A long prompt must be read each time. Or it is *distilled*: the initial state is trained until the model **without**
# the prompt predicts as the model **with** it. Texts that may follow the prompt are all it needs; where there are none,
# the model writes them itself.
#
# 长提示词每次都要重读。也可以把它*蒸馏*掉：训练初始状态，直到**没有**提示词的模型和**有**提示词的模型预测得一样。
# 只需要一些可能出现在提示词后面的文本；没有的话，模型自己写。

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or "tensorflow", "torch"

import itertools
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

from bert4keras_rwkv.models.rwkv import RWKV
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.training.distil import distil_prompt

keras.utils.set_random_seed(0)
model = RWKV.from_preset("finch-jargon", dtype="float32")

# %% [markdown]
# ## The prompt
#
# A few examples of how to write. What stands behind it are reports of other towns; the towns of the held-out ones are
# in neither.
#
# 几个例子，示范该怎么写。跟在后面的是别的城市的预报；留出的城市，前两处都没有出现。

# %%
SKIES = ["rain", "sun", "fog", "snow"]


def reports(towns):
    skies = itertools.product(SKIES, SKIES)
    some = zip(itertools.cycle(towns), skies, range(2 * len(towns)), strict=False)
    return [f"Weather in {town}: {a} in the morning, {b} in the evening.\n\n" for town, (a, b), _ in some]


PROMPT = "".join(reports(["Oslo", "Rome", "Paris"]))
TEXTS = reports("Boston Berlin London Delhi Lima Tokyo Dublin Madrid".split())
HELD_OUT = reports("Lisbon Cairo Denver Athens".split())
print(PROMPT)
print(len(model.tokenizer.encode(PROMPT)), "tokens")

# %% [markdown]
# ## Distil
#
# What falls is the divergence between the two predictions of each next token. 0 would be: no difference at all.
#
# 下降的是两种预测之间的散度（每个 token 多少 nat）。降到 0，就是毫无差别。

# %%
STEPS = 60
distilled = distil_prompt(
    model, PROMPT, TEXTS, held_out=HELD_OUT, steps=STEPS, batch_size=8, length=28, learning_rate=1.0, verbose=0
)

plt.figure(figsize=(6, 2.6))
middles = STEPS * (np.arange(len(distilled.losses)) + 0.5) / len(distilled.losses)
plt.plot(middles, distilled.losses, "o-", label="training")
plt.plot([0, STEPS], [distilled.before, distilled.after], "s", label="held out")
plt.xlabel("steps of 8 texts")
plt.ylabel("divergence\n(nats a token)")
plt.ylim(0, None)
plt.legend()
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Without, with, and instead of the prompt
#
# Which token comes next, from three states: nothing read, the prompt read, and the tuned state. A model as small as
# this heeds a prompt only a little; what it heeds, the state has. Orange should be as high as blue, wherever gray is.
#
# 分别从三个状态出发，下一个 token 会是什么：什么都没读、读过提示词、微调出的状态。
# 这么小的模型对提示词只听进去一点；但听进去的那点，状态里都有。不管灰色在哪里，橙色都应当和蓝色一样高。

# %%
nothing = RWKVState.zeros(model.config)
_, behind_prompt = model.prefill([model.tokenizer.encode(PROMPT)], nothing)
states = {"nothing read": nothing, "prompt read": behind_prompt, "tuned state": model.tuned_state()}
START = "Weather in Lisbon: rain in"
logits, _ = model.prefill([model.tokenizer.encode(START)] * 3, RWKVState.stack(states.values()))
chances = np.exp(np.asarray(logits) - np.max(logits, axis=1, keepdims=True))
chances /= chances.sum(axis=1, keepdims=True)
likeliest = np.argsort(-chances.max(axis=0))[:12]

plt.figure(figsize=(8, 2.6))
for number, (name, colour) in enumerate(zip(states, ["lightgray", "tab:blue", "tab:orange"], strict=True)):
    plt.bar(np.arange(12) + 0.28 * (number - 1), 100 * chances[number, likeliest], 0.28, color=colour, label=name)
plt.xticks(range(12), [repr(model.tokenizer.decode([token])) for token in likeliest], rotation=45, ha="right")
plt.xlabel(f"next token behind {START!r}")
plt.ylabel("probability (%)")
plt.legend()
plt.show()

# %% [markdown]
# ## What it costs
#
# The state is a file that other programs for RWKV read too (`layout="pth"`), and the prompt is never read again.
#
# 状态存成文件，RWKV 的其他程序也能读（`layout="pth"`）；提示词从此不必再读。

# %%
model.save_state(model.tuned_state(), "weather.pth", layout="pth")
print(f"{len(model.tokenizer.encode(PROMPT))} tokens to read each time, or {Path('weather.pth').stat().st_size} bytes")

# %% [markdown]
# ## Did it work?
#
# 成功了吗？

# %%
print(f"held-out divergence: {distilled.before:.3f} before, {distilled.after:.3f} after (nats a token)")
assert distilled.after < distilled.before / 2
