"""lm-eval runs our model on a task in local files, without a network, and finds our numbers."""

import json

import pytest

from bert4keras_rwkv.evaluation import evaluate_lambada, evaluate_text, read_lambada
from bert4keras_rwkv.models import RWKV

pytestmark = [
    pytest.mark.interop,
    pytest.mark.slow,
    pytest.mark.backend_free,
    pytest.mark.filterwarnings("ignore"),  # of lm-eval and what it imports
]

TEXTS = [
    "A hacker is a person who enjoys exploring the details of programmable systems and how to stretch them.",
    "The bug was found at last, by a hacker.",
    "It is said that the term was first used at the MIT Artificial Intelligence Lab, in the MIT AI Lab",
    "Some say that this is a feature, not a bug",
]
LAMBADA = """task: local_lambada
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""
ROLLING = """task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""
WRITING = """task: local_writing
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n", " the"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def rwkv():
    return RWKV.from_preset("finch-jargon")


@pytest.fixture(scope="module")
def found(rwkv, tmp_path_factory):
    """What `simple_evaluate` returns, and the file of the texts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("lm_eval")
        for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(folder / "cache"))
        lm_eval = pytest.importorskip("lm_eval")
        from lm_eval.tasks import TaskManager

        import bert4keras_rwkv.evaluation.lm_eval_model as ours

        data = folder / "texts.jsonl"
        data.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
        tasks = {"local_lambada": LAMBADA, "local_text": ROLLING, "local_writing": WRITING}
        for name, task in tasks.items():
            (folder / f"{name}.yaml").write_text(task.replace("DATA", str(data)))
        model = ours.RWKVForLMEval(rwkv, batch_size=2)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        results = lm_eval.simple_evaluate(
            model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, log_samples=True
        )
    return results, data


def test_registered_under_its_name(found):
    """And made from the arguments of lm-eval's command line."""
    from lm_eval.api.registry import get_model

    made = get_model("bert4keras_rwkv").create_from_arg_string(
        "pretrained=finch-jargon,chunk_len=64", {"batch_size": "auto"}
    )
    assert made.rwkv.config.hidden_size == 192 and made.tokenizer_name


def test_lambada(found, rwkv):
    """1e-4: float32, in other batches."""
    results, data = found
    theirs = results["results"]["local_lambada"]
    ours = evaluate_lambada(rwkv, read_lambada(data))
    assert theirs["acc,none"] == ours.accuracy
    assert theirs["perplexity,none"] == pytest.approx(ours.perplexity, rel=1e-4)
    assert 0 < ours.accuracy < 1  # or it would show little


def test_bits_per_byte(found, rwkv):
    """lm-eval counts no end of a document."""
    results, _ = found
    ours = evaluate_text(rwkv, TEXTS, with_end=False)
    assert results["results"]["local_text"]["bits_per_byte,none"] == pytest.approx(ours.bits_per_byte, rel=1e-5)


def test_writing_ends_where_the_task_says(found, rwkv):
    """As far as the first of `until`, or 12 tokens."""
    results, _ = found
    for sample in results["samples"]["local_writing"]:
        ((answer,),) = sample["resps"]
        ids = [0, *rwkv.tokenizer.encode(sample["doc"]["text"])]
        whole = rwkv.tokenizer.decode(rwkv.generate(ids, len(ids) + 12, sampling="greedy", strip_prompt=True))
        stops = [whole.find(stop) for stop in ("\n", " the") if stop in whole]
        assert answer == whole[: min(stops, default=len(whole))]
