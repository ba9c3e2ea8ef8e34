"""Minutes of mixed load: python -m benchmarks.soak --minutes 30. It ends with a table, and 1 if anything is wrong.

Clients ask for streams and whole answers, chats and completions, go on with sessions, hang up, read slowly, and send
what is no request, while the server is killed twice and started again. Each greedy answer is compared with the one that
the model writes alone, in a process without a server; those of sessions with what the server said when nobody else was
there. One that differs is right if each of its tokens was as good as the best, to 1e-3 of a logit, and counted apart.
"""

import argparse
import asyncio
import sys
import tempfile

from ..rounds import Worker
from ..served import Served, ours
from .load import Load, growth
from .outcomes import BAD, OUTCOMES
from .questions import questions

MOST, SHORTEST = 0.03, 60  # growth of memory, which is judged if there are so many samples of the last life
CACHE_MEMORY = "16MiB"  # full within seconds: what grows after that is a leak
JAX = {"KERAS_BACKEND": "jax"}


def arguments(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--model", default="finch-jargon", help="as for `serve` (finch-jargon)")
    parser.add_argument("--clients", type=int, default=24, help="who ask at once (24)")
    parser.add_argument("--questions", type=int, default=40, help="texts that are asked for, of which some go on (40)")
    parser.add_argument("--seed", type=int, default=0, help="of who asks what (0)")
    return parser.parse_args(argv)


def main(argv=None):
    options = arguments(argv)
    alone = Worker("alone", "peer_alone", [options.model], JAX)
    pool = questions(alone, options.questions)
    with tempfile.TemporaryDirectory() as folder:
        kept = ["--cache", folder, "--cache-memory", CACHE_MEMORY]
        with Served(ours(options.model, *kept), environment=JAX) as served:
            load = Load(served, alone, pool, options.clients, seed=options.seed)
            asyncio.run(load.run(60 * options.minutes))
            served.stop()
    alone.kill()
    return reported(load.tally, load.memory)


def reported(tally, memory):
    """Print what came of it. memory: of the last life. Returns 1 if anything is wrong, else 0."""
    print(*tally.table(), *tally.said, sep="\n")
    bad = tally.total(*BAD) > 0
    if len(memory) >= SHORTEST:
        more = growth(memory)
        bad = bad or more > MOST
        print(f"Memory, the last third of the last life against the first: {more:+.1%}; at most {MOST:.0%} is right.")
    else:
        print("The last life was too short to judge how memory grows.")
    print(f"{tally.total(*OUTCOMES)} requests. {'Something is wrong.' if bad else 'All is right.'}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
