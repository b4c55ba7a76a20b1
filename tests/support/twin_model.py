"""Make a twin of a model of the catalogue: its prompt format and its arguments, over random weights of a tiny network.

Runs in the vLLM image: `python3 -m tests.support.twin_model NAME DIRECTORY`, NAME being a key of TWINS. A twin shows
which requests the model's format accepts, and that answers are well-formed and end; not what the model would answer.
"""

import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

NETWORK = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,  # the least that vLLM's CPU backend takes
    "hidden_act": "silu",
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "dtype": "float32",
}
HARMONY_END = ("<|return|>", "<|endoftext|>", "<|call|>")


def mistral_small(directory: Path) -> None:
    """The tokenizer of mistral-common with version v11 and its special tokens, as Mistral Small 3.2 has it."""
    import mistral_common  # noqa: PLC0415 - in the image only, as the others below
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer  # noqa: PLC0415

    data = Path(mistral_common.__file__).parent / "data"
    tekken = json.loads((data / "tekken_240911.json").read_text())
    tekken["config"]["version"] = "v11"
    names = [token["token_str"] for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
    tekken["special_tokens"] = [
        {"rank": rank, "token_str": str(getattr(name, "value", name)), "is_control": True}
        for rank, name in enumerate([*names, "[CALL_ID]", "[ARGS]", "[THINK]", "[/THINK]"])
    ]
    write(directory / "tekken.json", tekken)
    size = tekken["config"]["default_vocab_size"]
    params = {
        "dim": NETWORK["hidden_size"],
        "hidden_dim": NETWORK["intermediate_size"],
        "n_layers": NETWORK["num_hidden_layers"],
        "n_heads": NETWORK["num_attention_heads"],
        "n_kv_heads": NETWORK["num_key_value_heads"],
        "head_dim": NETWORK["head_dim"],
        "norm_eps": NETWORK["rms_norm_eps"],
        "vocab_size": size,
        "rope_theta": 1e4,
        "max_position_embeddings": NETWORK["max_position_embeddings"],
        "tied_embeddings": False,
    }
    write(directory / "params.json", params)


def gpt_oss(directory: Path) -> None:
    """The encoding of oss-harmony, by which vLLM builds the prompt, and the model's own architecture."""
    import openai_harmony  # noqa: PLC0415
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

    encoding = openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    special = {encoding.encode(text, allowed_special="all")[0]: text for text in encoding.special_tokens_set}
    size = max(special)
    # Only to turn tokens into text: prompts are encoded by the library itself, so no merges are needed.
    letters = bytes_as_letters()
    vocabulary = {}
    for number in range(size):
        if number not in special:
            try:
                raw = encoding.decode([number], errors="strict").encode()
            except (ValueError, openai_harmony.HarmonyError):
                raw = b""
            text = "".join(letters[byte] for byte in raw)
            vocabulary[text if text and text not in vocabulary else f"<|unused_{number}|>"] = number
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    document = json.loads(tokenizer.to_str())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"] = [
        {"id": number, "content": text, "special": True, **flags} for number, text in sorted(special.items())
    ]
    write(directory / "tokenizer.json", document)
    ends = [number for number, text in special.items() if text in HARMONY_END]
    write(
        directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|return|>"}
    )
    write(directory / "generation_config.json", {"eos_token_id": ends})
    own = {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "vocab_size": size,
        "eos_token_id": ends[0],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": False,
    }
    write(directory / "config.json", NETWORK | own)


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
GEMMA_4 = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 2,
    # Layers of both kinds, with different sizes of heads, as in the large one.
    "layer_types": ["sliding_attention", "full_attention"],
    "global_head_dim": 64,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "pad_token_id": 0,
}


def over_stand_in(
    tokens: Sequence[str], *, template: str = "", network: Mapping[str, Any] = LLAMA
) -> Callable[[Path], None]:
    """A tokenizer of the tiny model's with the marks of the format; `template` is a file of vLLM's sources."""

    def make(directory: Path) -> None:
        from scripts.lab.tiny_model import make_tokenizer  # noqa: PLC0415

        tokenizer = make_tokenizer(random.Random(1))  # noqa: S311 - words, not secrets
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
        tokenizer.eos_token = tokens[0]
        tokenizer.chat_template = (Path("/vllm-sources") / template).read_text() if template else None
        tokenizer.save_pretrained(directory)
        own = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        write(directory / "config.json", {**NETWORK, **network, **own})

    return make


TWINS: dict[str, Callable[[Path], None]] = {
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": mistral_small,
    "openai/gpt-oss-120b": gpt_oss,
    "google/gemma-4-31B-it": over_stand_in(
        """<turn|> <|turn> <|tool> <tool|> <|tool_call> <tool_call|> <|tool_response> <tool_response|> <|channel>
        <channel|> <|think|> <|"|> <|image|> <|audio|> <|video|>""".split(),
        network=GEMMA_4,
    ),
    "Qwen/Qwen3.6-27B": over_stand_in(
        "<|im_end|> <|im_start|> <think> </think> <tool_call> </tool_call> <tool_response> </tool_response>".split(),
        template="rust/src/chat/tests/templates/qwen35.jinja",  # of Qwen3.5; the template of 3.6 is in no package
    ),
    "meta-llama/Llama-3.3-70B-Instruct": over_stand_in(
        "<|eot_id|> <|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|python_tag|>".split()
    ),
}


def bytes_as_letters() -> dict[int, str]:
    """The letter that stands for each byte in byte-level tokenizers."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def write(path: Path, document: dict[str, Any]) -> None:
    """Write JSON."""
    path.write_text(json.dumps(document))


if __name__ == "__main__":
    made = Path(sys.argv[2])
    made.mkdir(parents=True, exist_ok=True)
    TWINS[sys.argv[1]](made)
    for file in made.iterdir():
        file.chmod(0o644)
