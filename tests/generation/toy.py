"""A network small enough to follow by hand, once in Keras ops and once in NumPy, and a generator written plainly."""

import keras
import numpy as np
from keras import ops

V, N = 24, 2
D = 2 * N


class Toy(keras.layers.Layer):
    """x = 0.7 x + E[id], hidden = tanh(x + 0.5 E[previous id]): a recurrence and a shift, as RWKV has."""

    def __init__(self, vocabulary=V, seed=0, scale=2.0):
        super().__init__()
        random = np.random.default_rng(seed)
        self.embeddings = self.weight(random.normal(size=(vocabulary, D)))
        self.head = self.weight(random.normal(size=(D, vocabulary)) * scale)
        self.traces = 0

    def weight(self, values):
        weight = self.add_weight(shape=values.shape, trainable=True)
        weight.assign(values.astype("float32"))
        return weight

    def hidden(self, ids, state, present):
        self.traces += 1
        x, previous, ids = state["x"], state["previous"], ops.clip(ids, 0, self.embeddings.shape[0] - 1)
        hidden = ops.zeros_like(x)
        for t in range(ids.shape[1]):
            new = ops.take(self.embeddings, ids[:, t], axis=0)
            here = present[:, t : t + 1]
            hidden = ops.where(here, ops.tanh(0.7 * x + new + 0.5 * previous), hidden)
            x, previous = ops.where(here, 0.7 * x + new, x), ops.where(here, new, previous)
        return hidden, {"x": x, "previous": previous}

    def logits(self, hidden):
        return ops.matmul(hidden, self.head)

    def pack(self, state):
        return ops.reshape(state["x"], (-1, 1, 1, N, N)), ops.reshape(state["previous"], (-1, 1, 1, D))

    def unpack(self, wkv, shift):
        return {"x": ops.reshape(wkv, (-1, D)), "previous": ops.reshape(shift, (-1, D))}

    def start(self, batch):
        return {"x": ops.zeros((batch, D)), "previous": ops.zeros((batch, D))}


WKV, SHIFT = (1, 1, N, N), (1, 1, D)


class Plain:
    """The same network for one row, in NumPy."""

    def __init__(self, toy):
        self.embeddings, self.head = (ops.convert_to_numpy(w) for w in (toy.embeddings, toy.head))
        self.x, self.previous = np.zeros(D, "float32"), np.zeros(D, "float32")

    def read(self, token):
        """Consume one token; the logits after it."""
        new = self.embeddings[token]
        hidden = np.tanh(np.float32(0.7) * self.x + new + np.float32(0.5) * self.previous)
        self.x, self.previous = np.float32(0.7) * self.x + new, new
        return hidden @ self.head


def threefry(key, counter):
    """Threefry-2x32-20 on Python ints, straight from the paper."""
    mask = 0xFFFFFFFF
    ks = [key[0] & mask, key[1] & mask]
    ks.append(ks[0] ^ ks[1] ^ 0x1BD11BDA)
    x0, x1 = (counter[0] + ks[0]) & mask, (counter[1] + ks[1]) & mask
    for i in range(20):
        r = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x0 = (x0 + x1) & mask
        x1 = ((x1 << r | x1 >> (32 - r)) & mask) ^ x0
        if i % 4 == 3:
            j = i // 4 + 1
            x0, x1 = (x0 + ks[j % 3]) & mask, (x1 + ks[(j + 1) % 3] + j) & mask
    return x0, x1


def noise(seed, position, vocabulary):
    """The noise of every id, as generation/noise.py promises it, in float64."""
    words = [threefry((seed, 0x52574B56), (position, i // 2))[i % 2] for i in range(vocabulary)]
    u = np.minimum((np.array(words, "float64") + 0.5) / 2**32, 1 - 2**-24)
    return -np.log(-np.log1p(-u))


def allowed(logits, top_k, top_p):
    """The ids that may be drawn. logits: (V,) float64, already divided by the temperature."""
    order = np.argsort(-logits, kind="stable")
    weights = np.exp(logits - logits.max())
    mass = np.cumsum(weights[order]) / weights.sum()
    count = int(np.sum(np.concatenate([[0], mass[:-1]]) < top_p)) if top_p < 1 else len(order)
    return order[: min(max(count, 1), top_k or len(order))]


def pick(logits, sampling, seed, position):
    """The next id by the definition. logits: (V,), penalised."""
    logits = np.asarray(logits, "float64").copy()
    logits[list(sampling.mask_output)] = -np.inf
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    cooled = logits / sampling.temperature
    kept = np.sort(allowed(logits if sampling.temperature_after else cooled, sampling.top_k, sampling.top_p))
    return int(kept[np.argmax(cooled[kept] + noise(seed, position, len(logits))[kept])])


def paced(sampling, logits, ids, written):
    """ChatRWKV's rules about line feeds and repeated punctuation, straight from its text. logits: (V,)."""
    logits = np.asarray(logits, "float64").copy()
    if sampling.newline_id is not None:
        short, long = sampling.newline_lengths
        if written <= 0:
            logits[sampling.newline_id] = -np.inf
        elif written <= short:
            logits[sampling.newline_id] += (written - short) / 10
        elif written > long:
            logits[sampling.newline_id] += min(3, (written - long) / 4)
    if ids[-1] in sampling.no_repeat:
        logits[ids[-1]] = -np.inf
    return logits


def generate(toy, prompt, limit, sampling, seed=0, ends=(), plain=None, before=0, penalise=lambda logits, ids: logits):
    """The text of one row, a list of ids, and the network after all of it but the last token."""
    plain, ids = plain or Plain(toy), list(prompt)
    for token in ids[:-1]:
        plain.read(token)
    while ids and len(ids) < limit:
        logits = paced(sampling, penalise(plain.read(ids[-1]), ids), ids, len(ids) - len(prompt))
        ids.append(pick(logits, sampling, seed, before + len(ids) - len(prompt)))
        if ids[-1] in ends:
            break
    return ids, plain


def traced():
    """Whether this backend compiles, so that the number of traces means something."""
    return keras.config.backend() in ("jax", "tensorflow")
