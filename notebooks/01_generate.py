# %% [markdown]
# # 1 · Load a model and let it write
#
# 加载模型，让它写字
#
# The package ships a small RWKV-6, `finch-jargon`: 2.8 million parameters that have read one book, the Jargon File.
# It knows no facts, but it loads in a second, and all that follows is the same for a model a thousand times its size.
#
# 包里自带一个很小的 RWKV-6：`finch-jargon`，280 万参数，只读过一本书《Jargon File》。
# 它不懂什么知识，但一秒就能加载；下面的每一步，换成大一千倍的模型也完全一样。

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or "tensorflow", "torch"; before anything of Keras is imported

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bert4keras_rwkv.generation.sampling import Sampling
from bert4keras_rwkv.models.rwkv import RWKV
from bert4keras_rwkv.session import Session

model = RWKV.from_preset("finch-jargon", dtype="float32")
model

# %% [markdown]
# ## Greedy, and with chance
#
# 贪心与抽样
#
# A model gives each possible next token a probability. *Greedy* takes the likeliest, always: repeatable, and soon it
# repeats itself. *Top-p* draws from the likeliest tokens that together hold a share `p` of the probability.
#
# 模型给出下一个 token 的概率分布。贪心每次都取最可能的那个，结果固定，但很快就翻来覆去说同一句话；
# top-p 只在累计概率达到 `p` 的候选里抽样。

# %%
PROMPTS = ["A hacker is", "The bug was", "Real programmers"]
print(model.generate(PROMPTS[0], max_length=40, sampling="greedy"))

# %%
some_chance = Sampling(temperature=0.8, top_p=0.7)
texts = model.generate(PROMPTS, max_length=40, sampling=some_chance, seed=1)
for text in texts:
    print("·", " ".join(text.split()))

# %% [markdown]
# What there was to choose from after "A hacker is". Top-p keeps the dark bars.
#
# “A hacker is” 之后有哪些候选：深色是 top-p 留下的。

# %%
ids = np.array([model.tokenizer.encode(PROMPTS[0])])
logits, _ = model.forward(ids)
logits = np.asarray(logits)[0, -1] / some_chance.temperature
probability = np.exp(logits - logits.max())
probability /= probability.sum()
order = np.argsort(-probability)
kept = np.cumsum(probability[order]) - probability[order] < some_chance.top_p
names = [repr(model.tokenizer.decode([token])) for token in order[:32]]

plt.figure(figsize=(9, 2.4))
plt.bar(names, 100 * probability[order[:32]], color=np.where(kept[:32], "tab:blue", "lightsteelblue"))
plt.xticks(rotation=60, ha="right")
plt.xlabel("next token, the 32 likeliest")
plt.ylabel("probability (%)")
plt.title(f"top-p {some_chance.top_p} keeps {kept.sum()} of {len(kept)} tokens")
plt.show()

# %% [markdown]
# ## A seed makes chance repeatable, and a stream gives it piece by piece
#
# 随机种子让结果可以重现；流式输出写一点给一点
#
# Row `i` of a batch draws with seed + `i`, and nothing else: the same seed gives the same text alone, in a batch, and
# on each backend (unless two tokens are so close that rounding decides). Below, `|` parts what `stream` yields.
#
# 批次里第 `i` 行用的种子是 seed + `i`，与别的行无关：同一个种子，单独跑、放在批次里跑、换后端跑，写出来都一样
# （两个候选几乎并列、由舍入误差决定时除外）。下面用 `|` 隔开 `stream` 每次给出的一段。

# %%
pieces = list(model.stream(PROMPTS[0], max_length=40, sampling=some_chance, seed=1))
print("|".join(pieces))
print("the same as the first row above:", PROMPTS[0] + "".join(pieces) == texts[0])

# %% [markdown]
# ## The state: all that it remembers
#
# 状态：它记得的全部
#
# RWKV keeps no list of past tokens. All that it has read is in a state, which is as large after a word as after a
# library. Each call gives the state and takes it: to read a text in two parts is to read it whole.
#
# RWKV 不保存读过的 token。读过的一切都在一个状态里，读一个词和读一座图书馆，它都一样大。
# 每次调用都会给出状态，也能接收状态：分两次读和一次读完是一回事。

# %%
SENTENCE = "The wizard looked at the source of the old operating system and wept."
ids = np.array([model.tokenizer.encode(SENTENCE)])[:, :16]
whole, _ = model.forward(ids)
first, state = model.forward(ids[:, :8])
second, state = model.forward(ids[:, 8:], state)
difference = np.abs(np.concatenate([first, second], axis=1) - np.asarray(whole)).max()
print(f"largest difference of a logit: {difference:.1e}, of logits up to {np.abs(whole).max():.0f}")
print("wkv", state.wkv.shape, "- rows, layers, heads, key, value")
print("shift", state.shift.shape, "- rows, two for each layer, 1, width")

# %% [markdown]
# A file of it is a bookmark: read a long text once, save, and go on from there on any day, as often as you like.
# `Session` reads and writes in turns and holds the state between.
#
# 把状态存成文件，就像夹了一枚书签：长文只读一次，以后随时可以从那里接着写，写多少次都行。
# `Session` 轮流读和写，中间的状态由它保管。

# %%
STORY = "The wizard looked at the old mainframe for a long time. Nobody had seen the source of its monitor in years."
reader = Session(model).read(STORY)
model.save_state(reader.state, "story.safetensors")
print(f"{Path('story.safetensors').stat().st_size / 1000:.0f} kB for {len(model.tokenizer.encode(STORY))} tokens")
state = model.load_state("story.safetensors")
ENDINGS = [" He said", " At last"]
for ending in ENDINGS:
    text = Session(model, state, some_chance, seed=1).read(ending).write(20)
    print("·", " ".join((ending + text).split()))

# %% [markdown]
# ## Did it work?
#
# 成功了吗？
#
# What is written from the file, against what is written without a break. · 从文件接着写，与一口气写下来，结果应当一样。

# %%
same = []
for ending in ENDINGS:
    resumed = Session(model, state, some_chance, seed=1).read(ending).write(20)
    unbroken = Session(model, None, some_chance, seed=1).read(STORY).read(ending).write(20)
    same.append(resumed == unbroken)
print(f"{sum(same)} of {len(same)} endings are the same, character for character")
assert all(same)
