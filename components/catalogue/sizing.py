"""Contexts that fit into a machine's GPU memory, computed as vLLM 0.32.0 computes it: nothing here is measured.

Source of the formulas: vLLM 0.32.0, vllm/v1/kv_cache_interface.py (max_memory_usage_bytes of each kind of layer),
vllm/v1/core/kv_cache_utils.py (groups of layers, pages, blocks, concurrency), _align_hybrid_block_size in
vllm/platforms/interface.py (layers with a state), and get_batch_defaults in vllm/engine/arg_utils.py (batches).
tests/integration/test_sizing.py compares them with these functions themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
GB = 10**9
BLOCK_TOKENS = 16
"""Tokens of a block of the KV cache on Nvidia GPUs, unless layers with a state need longer ones."""
STATES = 2
"""Blocks that a context holds in each group of layers with a state: the current and the last cached one."""
BATCHES = 2
"""Batches in flight: vLLM schedules the next one while the GPUs work."""
LARGE_GPU_GIB = 70


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Layers of a model with the same cache."""

    kind: Literal["full", "sliding", "state"]
    """Attention to the whole context, to a window, or a state of fixed size (linear attention)."""
    count: int
    kv_heads: int = 0
    head_size: int = 0
    window: int = 0
    """Tokens that a sliding layer sees."""
    state_bytes: int = 0
    """Size of a layer's state."""
    element_bytes: int = 2
    """2 for a cache in BF16, as all models of the catalogue have it unless vllmExtraArgs say otherwise."""

    def token_bytes(self, gpus: int) -> int:
        """Bytes per token and layer on each of the GPUs: keys and values of its share of the heads, at least one."""
        return 2 * max(1, self.kv_heads // gpus) * self.head_size * self.element_bytes


@dataclass(frozen=True)
class Sizing:
    """A model's KV cache in a machine, computed, not measured. An upper bound: see `cache_bytes`."""

    layers: Sequence[Layers]
    gpus: int
    cache_bytes: int
    """KV cache of each GPU: what its share of the memory leaves beside the weights. vLLM takes activations and CUDA
    graphs from it as well; their size is known only once vLLM has measured it."""
    batch_tokens: int
    """Tokens that vLLM computes in one step (--max-num-batched-tokens)."""
    least_block: int = BLOCK_TOKENS
    batches: int = BATCHES

    @property
    def block_tokens(self) -> int:
        """Tokens of a block, long enough that a state fits into a layer's page."""
        state = max((each.state_bytes // self.gpus for each in self.layers), default=0)
        attention = max(each.token_bytes(self.gpus) for each in self.layers)
        return self.least_block * max(1, math.ceil(state / (self.least_block * attention)))

    @property
    def group_layers(self) -> int:
        """Layers of a group: the number of the rarest kind, or of the most frequent one if they hardly differ."""
        counts = [each.count for each in self.layers]
        return max(counts) if max(counts) < 1.5 * min(counts) else min(counts)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block on each GPU. All groups share one pool, so their blocks have the size of the largest."""
        return self.group_layers * self._page_bytes

    @property
    def _page_bytes(self) -> int:
        return self.block_tokens * max(each.token_bytes(self.gpus) for each in self.layers)

    @property
    def blocks(self) -> int:
        """Blocks that fit."""
        return max(0, self.cache_bytes) // self.block_bytes

    def context_blocks(self, tokens: int) -> int:
        """Blocks that a context of `tokens` tokens holds at most."""
        return sum(math.ceil(each.count / self.group_layers) * self._group_blocks(each, tokens) for each in self.layers)

    def _group_blocks(self, layers: Layers, tokens: int) -> int:
        if layers.kind == "state":
            return STATES
        own = self.block_tokens * layers.token_bytes(self.gpus)
        # Layers with smaller pages get longer blocks, or padded pages if that does not divide.
        block = self.block_tokens * (self._page_bytes // own if self._page_bytes % own == 0 else 1)
        if layers.kind == "full":
            return math.ceil(tokens / block)
        held = min(layers.window - 1 + self.batches * self.batch_tokens, tokens)
        return math.ceil(held / block) + 1  # a window may begin inside a block

    def contexts(self, tokens: int) -> float:
        """Contexts of `tokens` tokens that fit at once (vLLM logs it as "Maximum concurrency")."""
        return self.blocks / self.context_blocks(tokens)

    def longest(self) -> int:
        """Tokens of the longest context that fits once. One block is never given out."""
        low, high = 0, max(1, self.blocks) * self.block_tokens * self.group_layers * 64
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.context_blocks(middle) <= self.blocks - 1 else (low, middle - 1)
        return low


def of_machine(
    layers: Sequence[Layers], *, weights_gb: float, gpus: int, memory_gib: int, utilization: float, gpu: str = ""
) -> Sizing:
    """Return the sizing for `gpus` GPUs of `memory_gib` GiB each, of which vLLM may use the share `utilization`.

    `gpu` is the GPU's name (A100-80GB), by which vLLM chooses its batches; empty: a large one other than A100.
    """
    free = memory_gib * GIB * utilization - weights_gb * GB / gpus
    large = memory_gib >= LARGE_GPU_GIB and "A100" not in gpu
    return Sizing(tuple(layers), gpus, int(free), batch_tokens=8192 if large else 2048)
