"""lm-evaluation-harness on a folder of `assay export`, with the questions of a local file; prints JSON.

The task is written here, after the harness' own guide: a question, its choices after "Answer:", no examples.

    python lm_eval_harness.py MODEL_FOLDER QUESTIONS.jsonl
"""

import importlib.metadata
import json
import socket
import sys

import lm_eval


def refuse(*_):
    """Refuse a connection; it stands in for every function that opens one."""
    raise OSError("the harness reached for the network")


def main():
    """Ask, and print the scores and the log likelihood of each choice of each question."""
    socket.socket.connect = refuse
    model, questions = sys.argv[1:3]
    task = {
        "task": "local_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": questions}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{choices.index(answer)}}",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
    arguments = {"pretrained": model, "dtype": "float32", "trust_remote_code": True}
    found = lm_eval.simple_evaluate("hf", arguments, tasks=[task], device="cpu", batch_size=8, log_samples=True)
    samples = sorted(found["samples"]["local_questions"], key=lambda sample: sample["doc_id"])
    names = ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr")
    versions = {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers")}
    nats = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    scores = {name: found["results"]["local_questions"][f"{name},none"] for name in names}
    print(json.dumps({**scores, "nats": nats, "versions": versions}))


if __name__ == "__main__":
    main()
