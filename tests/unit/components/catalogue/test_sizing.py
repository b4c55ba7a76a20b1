"""Contexts that fit into GPU memory, against figures of vLLM 0.32.0 (tests/integration/test_sizing.py has more)."""

import pytest

from components.catalogue.machine_types import load_machine_types
from components.catalogue.models import Model, load_catalogue
from components.catalogue.sizing import GIB, Layers, Sizing, of_machine

MODELS = load_catalogue().models
EIGHT_GPUS_OF_141_GIB = {
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": (397_507, 795.014, 48.5238037109375),
    "openai/gpt-oss-120b": (1_737_488, 1735.7522477522477, 188.34558265582655),
    "google/gemma-4-31B-it": (391_964, 130.43727121464227, 28.742685341350736),
    "Qwen/Qwen3.6-27B": (19_731, 758.8846153846154, 59.0748502994012),
}
"""Blocks, and concurrency for 8,000 and 131,072 tokens, as vLLM's functions returned them."""


def sizing(model: Model, gpus: int, memory_gib: int, gpu: str = "") -> Sizing:
    return of_machine(
        model.layers, weights_gb=model.weights_gb, gpus=gpus, memory_gib=memory_gib, utilization=0.9, gpu=gpu
    )


@pytest.mark.parametrize("name", EIGHT_GPUS_OF_141_GIB)
def test_blocks_and_contexts_are_those_of_vllm(name: str) -> None:
    found = sizing(MODELS[name], 8, 141)
    blocks, short, long = EIGHT_GPUS_OF_141_GIB[name]
    assert found.blocks == blocks
    assert found.contexts(8_000) == pytest.approx(short)
    assert found.contexts(131_072) == pytest.approx(long)


def test_every_model_of_the_catalogue_has_layers() -> None:
    assert [model.name for model in MODELS.values() if not model.layers] == []


def test_a_dense_models_cache_is_keys_and_values_of_every_layer() -> None:
    found = Sizing((Layers(kind="full", count=40, kv_heads=8, head_size=128),), 1, 10 * GIB, 2048)
    assert found.block_bytes == 16 * 40 * 8 * 128 * 2 * 2
    assert found.contexts(64_000) == pytest.approx(10 * GIB / (64_000 * 40 * 8 * 128 * 2 * 2), rel=0.001)


def test_a_sliding_layer_holds_its_window_and_the_batches_in_flight_however_long_the_context_is() -> None:
    layers = Layers(kind="sliding", count=1, kv_heads=1, head_size=64, window=1024)
    found = Sizing((layers,), 1, GIB, 2048)
    assert found.context_blocks(1_000_000) == found.context_blocks(100_000) == -(-(1023 + 2 * 2048) // 16) + 1


def test_the_block_grows_until_a_layers_state_fits_into_a_page() -> None:
    assert sizing(MODELS["Qwen/Qwen3.6-27B"], 1, 80).block_tokens == 784  # as vLLM's log says for this shape


def test_heads_are_repeated_where_there_are_more_gpus_than_heads() -> None:
    layers = Layers(kind="full", count=1, kv_heads=8, head_size=128)
    assert layers.token_bytes(16) == layers.token_bytes(8) == layers.token_bytes(1) // 8


@pytest.mark.parametrize("gpu", ["A100-80GB", "L4-24GB"])
def test_an_a100_and_a_small_gpu_take_smaller_batches_than_a_large_one(gpu: str) -> None:
    kind = next(kind for kind in load_machine_types().values() if kind.gpu == gpu)
    assert sizing(MODELS["google/gemma-4-31B-it"], 8, kind.gpu_memory_gib, gpu).batch_tokens == 2048
    assert sizing(MODELS["google/gemma-4-31B-it"], 8, 141, "H200-141GB").batch_tokens == 8192


def test_the_longest_context_fits_and_one_token_block_more_does_not() -> None:
    found = sizing(MODELS["meta-llama/Llama-3.3-70B-Instruct"], 2, 80, "A100-80GB")
    longest = found.longest()
    assert found.context_blocks(longest) == found.blocks - 1
    assert found.context_blocks(longest + 1) == found.blocks


def test_nothing_fits_where_the_weights_take_more_than_the_memory() -> None:
    found = sizing(MODELS["meta-llama/Llama-3.3-70B-Instruct"], 1, 80)
    assert (found.blocks, found.contexts(8_000), found.longest()) == (0, 0, 0)
