"""The sizing of every model of the catalogue, compared with what vLLM's own functions compute for the same shapes."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from components.catalogue.models import load_catalogue
from components.catalogue.sizing import Sizing, of_machine
from tests.support.twins import IMAGE

ROOT = Path(__file__).resolve().parents[2]
TOKENS = (8_000, 131_072)
GPUS = ((1, 141, ""), (2, 80, "A100-80GB"), (8, 141, ""))
pytestmark = pytest.mark.usefixtures("machine")


def test_blocks_and_contexts_are_what_vllm_computes() -> None:
    cases: list[tuple[Sizing, int]] = []
    for model in load_catalogue().models.values():
        for gpus, memory, gpu in GPUS:
            found = of_machine(
                model.layers, weights_gb=model.weights_gb, gpus=gpus, memory_gib=memory, utilization=0.9, gpu=gpu
            )
            cases += [(found, tokens) for tokens in TOKENS if found.cache_bytes > 0]
    asked = [
        {
            "gpus": found.gpus,
            "block_tokens": found.block_tokens,
            "layers": [asdict(layers) for layers in found.layers],
            "in_flight": found.batches * found.batch_tokens,
            "tokens": tokens,
            "cache_bytes": found.cache_bytes,
        }
        for found, tokens in cases
    ]
    run = ["docker", "run", "--rm", "--interactive", "--network", "none", "--entrypoint", "python3"]
    run += ["--env", "PYTHONPATH=/repository", "--env", "PYTHONDONTWRITEBYTECODE=1"]
    run += [
        "--volume",
        f"{ROOT}:/repository:ro",
        IMAGE,
        "-m",
        "tests.support.vllm_kv_cache",
    ]
    done = subprocess.run(run, input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == len(cases) > 20
    for (found, tokens), answer in zip(cases, answers, strict=True):
        assert found.blocks == answer["blocks"]
        assert found.contexts(tokens) == pytest.approx(answer["contexts"])
