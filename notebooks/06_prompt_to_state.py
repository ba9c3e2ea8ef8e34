# %% [markdown]
# # 6 · A prompt becomes a state
#
# 把提示词变成状态
#
# A long prompt must be read each time. Or it is *distilled*: the initial state is trained until the model **without**
# the prompt predicts as the model **with** it. No answers are needed: the model writes them itself, behind the prompt.
#
# 长提示词每次都要重读。也可以把它*蒸馏*掉：训练初始状态，直到**没有**提示词的模型和**有**提示词的模型预测得一样。
# 不需要准备答案：模型自己在提示词后面写。

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or "tensorflow", "torch"

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
# A few examples of how to write. · 几个例子，示范该怎么写。

# %%
TOWNS = ["Oslo", "Rome", "Paris", "Boston", "Berlin", "London"]
SKIES = ["rain", "sun", "fog"]
PROMPT = "".join(
    f"Weather in {town}: {SKIES[n % 3]} in the morning, {SKIES[(n + 1) % 3]} in the evening.\n\n"
    for n, town in enumerate(TOWNS)
)
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
    model, PROMPT, steps=STEPS, batch_size=8, length=32, samples=48, learning_rate=0.5, seed=0, verbose=0
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
# One batch, three rows, each from another state. · 一个批次三行，各从不同的状态开始。

# %%
nothing = RWKVState.zeros(model.config)
_, behind_prompt = model.prefill([model.tokenizer.encode(PROMPT)], nothing)
states = {"nothing read": nothing, "behind the prompt": behind_prompt, "tuned state": model.tuned_state()}
STARTS = ["Weather in Lisbon:", "Weather in Cairo:"]
for start in STARTS:
    print(start)
    texts = model.generate(
        [start] * 3, max_length=36, sampling="greedy", strip_prompt=True, state=RWKVState.stack(states.values())
    )
    for name, text in zip(states, texts, strict=True):
        print(f"  {name:18}{text.split(chr(10))[0]}")

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
