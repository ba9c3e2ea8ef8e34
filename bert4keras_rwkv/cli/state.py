"""`state`: state files averaged, or one in another form."""

from bert4keras_rwkv.atomic import check_file
from bert4keras_rwkv.cli.arguments import UsageError
from bert4keras_rwkv.state import RWKVState
from bert4keras_rwkv.weights.checkpoint import named, open_checkpoint
from bert4keras_rwkv.weights.states import read_state, write_state


def run(arguments):
    """Read the states, and write their average."""
    count = len(arguments.sources)
    if arguments.weights is not None and len(arguments.weights) != count:
        raise UsageError(f"--weights has one for each of the {count} files. Received: {len(arguments.weights)}.")
    check_file(arguments.out)
    with open_checkpoint(named(arguments.model)) as checkpoint:
        config = checkpoint.config
    states = [read_state(source, config) for source in arguments.sources]
    write_state(arguments.out, RWKVState.average(states, arguments.weights), drop_shift=arguments.drop_shift)
    print(f"Wrote {arguments.out}")
