# %% [markdown]
# # 3 · State tuning
#
# 状态微调（state tuning）
#
# Every text begins in a state, usually zero: as if nothing had been read. State tuning makes that state the only weight
# that trains. No other weight changes, and the model is as fast afterwards as before.
#
# 每段文本都从一个状态开始，通常是零，好像什么都没读过。状态微调只训练这个初始状态，其余权重一概不动，用起来也不会变慢。
#
# There are two kinds · 有两种：
#
# - the matrices of the recurrence, `wkv`, alone · 只训练递归的矩阵 `wkv`；
# - also the two last inputs of every layer, the token shifts · 连同每层的两个 token shift。

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # or "tensorflow", "torch"

import keras
import matplotlib.pyplot as plt
import numpy as np

from bert4keras_rwkv.layers import NextTokenLoss
from bert4keras_rwkv.models.rwkv import RWKV

# %% [markdown]
# ## What it shall learn
#
# A way to answer. The words of the held-out questions stand in no question that it is trained on.
#
# 学一种回答方式。留出的问题里的词，训练时一个也没有出现过。

# %%
WORDS = "bug kernel compiler terminal disk editor patch hacker cracker virus server packet pointer keyboard".split()
WORDS += "screen printer modem shell worm mouse robot clock macro loop filter newbie router stack".split()
WORDS += "car novel letter camel".split()
UNSEEN = "daemon wizard debugger password buffer pipe dragon bridge".split()
QUESTIONS = ["Q: What is a {}?\n\nA:", "Q: Tell me about the {}.\n\nA:"]
ANSWER = " Only a wizard understands the {}.\n\n"
LENGTH = 28  # tokens of a question with its answer, at most


def rows(words, tokenizer):
    """Padded ids (B, LENGTH), and where the answers are: only they count in the loss."""
    ids, answer = np.zeros((2, len(words) * len(QUESTIONS), LENGTH), "int32")
    pairs = [(question.format(word), ANSWER.format(word)) for word in words for question in QUESTIONS]
    for number, (question, reply) in enumerate(pairs):
        question, reply = tokenizer.encode(question), tokenizer.encode(reply)
        both = question + reply
        ids[number, LENGTH - len(both) :] = both
        answer[number, LENGTH - len(reply) :] = 1
    return {"Input-Token": ids, "Answer-Mask": answer}


def answers(model):
    """What the model answers to the questions about unseen words."""
    prompts = [QUESTIONS[0].format(word) for word in UNSEEN]
    texts = model.generate(prompts, max_length=40, sampling="greedy", strip_prompt=True)
    return [text.strip().split("\n")[0] for text in texts]


# %% [markdown]
# ## Two models, one of each kind
#
# A state wants a learning rate hundreds of times that of a weight: it starts at zero, and is one among many things that
# are added up. With so few steps it is larger still; `training/learning_rates.py` has values for longer runs, and
# `callbacks.LearningRateFinder` finds yours.
#
# 状态需要的学习率比权重大几百倍：它从零开始，又只是许多累加项中的一项。这里步数很少，还要更大些；
# 训练更久时的取值见 `training/learning_rates.py`，也可以用 `callbacks.LearningRateFinder` 自己找。

# %%
EPOCHS, BATCH = 12, 8


def tuned(time_shift_tuning, learning_rate):
    """A model whose state was tuned, its answers before and after, and its losses at the end of each epoch."""
    keras.utils.set_random_seed(0)
    model = RWKV.from_preset("finch-jargon", dtype="float32")
    model.enable_state_tuning(time_shift_tuning=time_shift_tuning)
    train, held_out = rows(WORDS, model.tokenizer), rows(UNSEEN, model.tokenizer)
    trainer = model.training_model(NextTokenLoss(answer_mask=True))
    steps = EPOCHS * len(train["Input-Token"]) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    trainer.compile(keras.optimizers.Adam(rate, beta_2=0.95))
    first = trainer.evaluate(held_out, batch_size=BATCH, verbose=0)
    said = answers(model)
    told = trainer.fit(
        train, validation_data=(held_out,), batch_size=BATCH, epochs=EPOCHS, validation_batch_size=BATCH, verbose=0
    ).history
    count = sum(int(np.prod(weight.shape)) for weight in model.backbone.trainable_variables)
    print(f"{count} of {model.backbone.count_params()} numbers train")
    return model, (said, answers(model)), {"loss": told["loss"], "held out": [first, *told["val_loss"]]}


wkv_only, wkv_answers, wkv_losses = tuned(False, learning_rate=3.0)

# %%
with_shifts, shift_answers, shift_losses = tuned(True, learning_rate=3.0)

# %% [markdown]
# ## Loss
#
# Held out is the line to look at. · 要看的是留出数据的那条线。

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
for axis, title, losses in zip(axes, ["wkv", "wkv and shifts"], [wkv_losses, shift_losses], strict=True):
    axis.plot(np.arange(EPOCHS) + 0.5, losses["loss"], "o-", label="training")
    axis.plot(np.arange(EPOCHS + 1), losses["held out"], "s-", label="held out")
    axis.set(title=title, xlabel="epochs", ylim=(0, None))
    axis.grid(alpha=0.3)
axes[0].set_ylabel("loss of the answers\n(nats a token)")
axes[1].legend()
plt.show()

# %% [markdown]
# ## Answers, about words that it was not tuned on
#
# 对没见过的词，它怎么回答
#
# The form is learned. To repeat the word that was asked for is more than a model of this size learns in a minute.
#
# 句式学会了；但要把问到的那个词也说对，这么小的模型一分钟还学不会。

# %%
for word, before, wkv, both in zip(UNSEEN, wkv_answers[0], wkv_answers[1], shift_answers[1], strict=True):
    print(f"What is a {word}?\n  before:         {before[:70]}\n  wkv:            {wkv}\n  wkv and shifts: {both}")

# %% [markdown]
# ## The state that was learned
#
# One square for each layer (row) and head (column): a matrix from keys to values. What the first token asks for, it
# finds here, as if it had been read. Pale rows are keys that forget too fast to reach the answer.
#
# 一行是一层，一列是一个头；每个方块是一个从键到值的矩阵。第一个 token 到这里来取东西，仿佛这些内容早就读过。
# 颜色很淡的行，是忘得太快、到不了回答那里的键。

# %%
state = with_shifts.tuned_state()
wkv = state.wkv[0]
limit = np.percentile(np.abs(wkv), 99.5)
layers, heads = wkv.shape[:2]
fig, axes = plt.subplots(layers, heads, figsize=(7, 4.8), sharex=True, sharey=True, layout="constrained")
for (layer, head), axis in np.ndenumerate(axes):
    image = axis.imshow(wkv[layer, head], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axis.set(xticks=[0, 31], yticks=[0, 31])
    if layer == 0:
        axis.set_title(f"head {head}", fontsize=9)
    if head == 0:
        axis.set_ylabel(f"layer {layer}\nkey", fontsize=9)
    if layer == layers - 1:
        axis.set_xlabel("value", fontsize=9)
fig.colorbar(image, ax=axes, shrink=0.6, label="wkv, red > 0, blue < 0")
plt.show()

# %% [markdown]
# And the token shifts: for each layer what its time mix (even rows) and its channel mix (odd rows) take for the token
# before the first. The last row stays zero: it could only change what follows the first token, which is no answer.
#
# 每层的 time mix（偶数行）和 channel mix（奇数行）把什么当作“第一个 token 之前的那个”。
# 最后一行始终是零：它只能影响紧跟第一个 token 的预测，而那不属于回答。

# %%
shift = state.shift[0, :, 0]
limit = np.percentile(np.abs(shift), 99.5)
plt.figure(figsize=(8, 2))
plt.imshow(shift, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
plt.yticks(
    range(len(shift)), [f"{i // 2} {'time' if i % 2 == 0 else 'channel'}" for i in range(len(shift))], fontsize=8
)
plt.xlabel("channel")
plt.ylabel("layer, mix")
plt.colorbar(label="last input")
plt.show()

# %% [markdown]
# ## Did it work?
#
# The state is an artefact of its own: a small file, and `state=` or `set_tuned_state` uses it anywhere.
#
# 状态本身就是一件成品：一个小文件，用 `state=` 或 `set_tuned_state` 随处可用。

# %%
for name, losses in {"wkv": wkv_losses, "wkv and shifts": shift_losses}.items():
    first, last = losses["held out"][0], losses["held out"][-1]
    print(f"held-out loss, {name}: {first:.2f} before, {last:.2f} after (nats a token)")
    assert last < first / 2
