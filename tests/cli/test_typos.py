"""A typo is told at once, in one line that names what was meant."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from fakerun import change_json, make_run

TYPOS = {
    "trian": "did you mean train?",
    "--phase frozen": "expected .*train",
    "train frozen": "frozen",
    "train --epoch 3": "did you mean --epochs",
    "train -epochs 3": "did you mean --epochs",
    "train --learning_rate 1": "did you mean --learning-rate",
    "train --lr 1e-4x": "--learning-rate 1e-4x: expected .* number",
    "train --epochs 3.5": "--epochs 3.5: expected .* integer",
    "train --phase fintune": "did you mean finetune?",
    "train --backbone resnet5O": "did you mean resnet50",
    "train --backbone Vgg_61": "did you mean vgg1",
    "train --backbone densenet --phase scratch": "did you mean densenet",
    "train --cut covn4": "stem, conv2, conv3, conv4, conv5.*did you mean conv4",
    "train --cut conv4/blok3": "did you mean conv4/block3",
    "train --phase finetune --unfreeze conv4,cnov5": "did you mean conv5",
    "train --phase finetune --from frist": "did you mean first?",
    "train --recipe lit": "did you mean lite?",
    "train --recipe mine.toml": "unknown setting epoch .*did you mean epochs?",
    "train --resume frist": "did you mean first?",
    "train --data smaple": "did you mean sample?",
    "train --weights imagnet": "did you mean imagenet?",
    "train --augment flip,mixp": "did you mean mixup?",
    "train --schedule cosin": "did you mean cosine?",
    "train --wandb onlin": "did you mean online",
    "train --runs-dri x": "did you mean --runs-dir",
    "evaluate first --dta x.csv": "did you mean --data",
    "predict frist x.csv": "did you mean first?",
    "report runs/frist": "did you mean first?",
    "report runs/other": "runs in runs: first",
    "report first --runs-dir rnus": "there is no folder rnus in",
    "export first --format litrt": "did you mean litert?",
    "export first": "required: --format",
    "sweep --seeds 2 --backbone resnet5O": "did you mean resnet50",
    "sweep --seeds 2 --augment flp": "did you mean flip",
    "clean --ye": "did you mean --yes",
    # What is no typo
    "nothing": "unknown command nothing; expected clean",
    "train --run=--": "^--run=--: expected",
    f"report {'a' * 300}": "too long",
    f"train --cache {'a' * 300}": "too long",
}
SCRIPT = """
import contextlib, io, json, sys, time
from fmnist_tf.__main__ import main
results = {}
for command in json.load(sys.stdin):
    sys.argv = ["fmnist-tf", *command.split()]
    started, err = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err):
        try:
            code = main()
        except SystemExit as error:
            code = error.code
    results[command] = code, err.getvalue(), time.perf_counter() - started
slow = {"tensorflow", "keras", "wandb", "optuna"} & set(sys.modules)
print(json.dumps([results, sorted(slow)]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Command -> exit code, what it printed, seconds; all in one process."""
    folder = tmp_path_factory.mktemp("typos")
    run = make_run(folder / "runs/first", done=False)
    change_json(run.file("config.json"), backbone="resnet50", image_size=64)
    change_json(run.file("evaluation.json"), calibration={"temperature": 1.0})
    run.file("model.keras").touch()
    run.write_done()
    (folder / "mine.toml").write_text("epoch = 3\n")
    words = json.dumps(list(TYPOS))
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=words, capture_output=True, text=True, cwd=folder
    )
    assert answer.returncode == 0, answer.stderr
    found, slow = json.loads(answer.stdout)
    assert slow == []
    return found


@pytest.mark.parametrize("command", TYPOS)
def test_a_typo_is_one_line_at_once(command: str, results: dict) -> None:
    code, printed, seconds = results[command]
    assert code == 2, printed
    *before, line = printed.splitlines()
    assert len(before) <= ("finetune" in command)  # which names the run it continues
    assert re.search(TYPOS[command], line), line
    assert seconds < 1
