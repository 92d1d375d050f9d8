"""
FSDP: weights spread over processes train, validate, save and resume as in one process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from kidspeech.config import load_recipe
from kidspeech.dataset import build_dataset
from kidspeech.sharded import gathered
from kidspeech.train import train

from corpora import Corpus

CONFIGURATION = Path(__file__).parents[1] / "recipes" / "accelerate" / "fsdp.yaml"
# accelerate offers FSDP to accelerators only; past this gate it works over gloo, with the launcher's configuration
WORKER = """
import sys
from accelerate import PartialState
from accelerate.utils import DistributedType
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
from kidspeech.cli.main import main
main(["train", "--worker", *sys.argv[1:]])
"""


@pytest.mark.unit
def test_a_network_that_is_not_sharded_is_left_alone() -> None:
    """
    The same block serves one process.
    """
    network = torch.nn.Linear(2, 2)
    with gathered(network):
        assert network(torch.ones(2)).shape == (2,)


@pytest.mark.integration
@pytest.mark.slow
def test_two_processes_with_the_shipped_configuration_take_the_steps_of_one(
    recipe_file: Path, corpus: Corpus, tmp_path: Path
) -> None:
    """
    Steps end with one process's weights to float32's accuracy, after a resume as well; best/ is a plain checkpoint.
    """
    data, worker, run = tmp_path / "DATA", tmp_path / "worker.py", tmp_path / "TWO"
    worker.write_text(WORKER, encoding="utf-8")
    build_dataset(load_recipe(recipe_file), [corpus.manifest], corpus.audio_dirs, data)
    train(load_recipe(recipe_file), data, tmp_path / "ONE")
    alone = load_file(tmp_path / "ONE" / "step-000006" / "model.safetensors")

    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGURATION),
        "--main_process_port",
        "0",
    ]
    for _ in range(2):
        done = subprocess.run(
            [*launch, str(worker), str(recipe_file), "--data", str(data), "--out", str(run)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )
        assert done.returncode == 0, done.stderr
        dcp_to_torch_save(run / "step-000006" / "pytorch_model_fsdp_0", tmp_path / "whole.pt")
        together = torch.load(tmp_path / "whole.pt")["model"]
        for name, tensor in alone.items():
            torch.testing.assert_close(tensor, together[name], rtol=1e-4, atol=1e-5)
        best, expected = (load_file(folder / "best" / "model.safetensors") for folder in (run, tmp_path / "ONE"))
        assert best.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(best[name], tensor, rtol=1e-4, atol=1e-5)
        assert transformers.WhisperForConditionalGeneration.from_pretrained(run / "best").config.d_model == 16
        (run / "run.json").unlink()
        shutil.rmtree(run / "step-000006")  # as if it had been killed after step 4
