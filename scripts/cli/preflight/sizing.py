"""Check of the GPU memory: contexts that fit beside the weights."""

from components.catalogue.sizing import GIB, of_machine
from components.settings.model import argument_value
from components.settings.stack import Settings
from scripts.cli.preflight.report import NotCheckedError, Outcome, failed, ok

SHOWN_TOKENS = (8_000, 32_000, 64_000, 128_000)
"""A question with the assistant's tools, a long conversation, the least that Elastic's Observability Assistant wants,
and an Attack Discovery over many alerts."""


def contexts(settings: Settings) -> Outcome:
    """Compute the KV cache and the contexts in it; FAIL if not even one of the longest context fits."""
    model, gpus = settings.model, settings.gpus
    if not model.layers:
        raise NotCheckedError(f"no source names the layers of {model.name}: give them in modelCatalogue (layers)")
    if argument_value(settings.vllm_extra_args, "--kv-cache-dtype"):
        raise NotCheckedError("vllmExtraArgs set --kv-cache-dtype, and the computation is for a cache in BF16")
    kind = settings.google.machine_type.gpu if settings.google else ""
    found = of_machine(
        model.layers,
        weights_gb=model.weights_gb,
        gpus=gpus.count,
        memory_gib=gpus.memory_gib,
        utilization=gpus.memory_utilization,
        gpu=kind,
    )
    cache = f"at most {max(0, found.cache_bytes) * gpus.count / GIB:.1f} GiB of KV cache"
    longest = settings.served_max_model_len
    if found.longest() < longest:
        return failed(
            f"computed, not measured: {cache}, less than one context of {longest:,} tokens needs, so vLLM won't start",
            f"set maxModelLen to {found.longest() // 1000 * 1000} or less, or use more GPU memory",
        )
    fitting = {tokens: found.contexts(tokens) for tokens in (*SHOWN_TOKENS, longest) if tokens <= longest}
    listed = ", ".join(f"{count:.1f} of {tokens:,} tokens" for tokens, count in sorted(fitting.items()))
    return ok(f"computed, not measured: {cache}; contexts at once: {listed}")
