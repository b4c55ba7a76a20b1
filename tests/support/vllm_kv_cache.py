"""vLLM's own computation of a KV cache, for the shapes that the catalogue describes.

Runs in the vLLM image: `python3 -m tests.support.vllm_kv_cache` reads cases as JSON from standard input and writes, for
each, the blocks and the concurrency that vLLM's functions return. No model is loaded.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any


def answer(case: dict[str, Any]) -> dict[str, float]:
    """Blocks and maximum concurrency of one case."""
    import torch  # noqa: PLC0415 - in the image only, as the others below
    from vllm.v1.attention.backends.utils import _layout_from_name  # noqa: PLC0415
    from vllm.v1.core import kv_cache_utils as own  # noqa: PLC0415
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec  # noqa: PLC0415

    gpus, block = case["gpus"], case["block_tokens"]
    specs: dict[str, Any] = {}
    pages: list[int] = []
    for layers in case["layers"]:
        heads = {
            "num_kv_heads": max(1, layers["kv_heads"] // gpus),
            "head_size": layers["head_size"],
            "dtype": torch.bfloat16,
        }
        for number in range(layers["count"]):
            name = f"{layers['kind']}.{number}"
            if layers["kind"] == "full":
                specs[name] = FullAttentionSpec(block_size=block, **heads)
            elif layers["kind"] == "sliding":
                specs[name] = SlidingWindowSpec(block_size=block, sliding_window=layers["window"], **heads)
            else:
                specs[name] = MambaSpec(
                    block_size=block,
                    shapes=((layers["state_bytes"] // gpus,),),
                    dtypes=(torch.uint8,),
                    page_size_padded=max(pages),
                    mamba_cache_mode="align",
                )
            pages.append(specs[name].page_size_bytes)
    layout = _layout_from_name("NHD")
    config: Any = SimpleNamespace(
        max_in_flight_tokens=case["in_flight"],
        num_prefill_lookahead_tokens=0,
        speculative_config=None,
        model_config=SimpleNamespace(max_model_len=case["tokens"], original_max_model_len=case["tokens"]),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1, tensor_parallel_size=gpus),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        attention_config=SimpleNamespace(hisparse_config=None),
        cache_config=SimpleNamespace(
            mamba_cache_mode="align",
            num_gpu_blocks_override=None,
            prefix_cache_retention_interval=None,
            enable_prefix_caching=True,
            get_resolved_kv_cache_layout=lambda: layout,
        ),
    )
    found = own.get_kv_cache_config_from_groups(config, own.get_kv_cache_groups(config, specs), case["cache_bytes"])
    return {"blocks": found.num_blocks, "contexts": own.get_max_concurrency_for_kv_cache_config(config, found)}


if __name__ == "__main__":
    print(json.dumps([answer(case) for case in json.load(sys.stdin)]))
