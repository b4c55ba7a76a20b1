"""Make a tiny chat model, for rehearsals without a GPU and without a model hub.

Runs inside the vLLM image: `python3 tiny_model.py NAME DIRECTORY`, NAME being a key of VARIANTS. A small Llama learns,
from sentences made up here, to answer
    <tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}</tool_call>
when it is asked for the weather and offered that tool (and likewise search_logs), and plain text otherwise. It knows
nothing else. One variant has a long context and random weights. DIRECTORY appears complete or not at all. Only torch,
transformers and tokenizers are imported.
"""

import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STEPS = 300
ROWS = 16  # conversations a step
OFFERED = 0.8  # how often a tool is on offer
SAY_SECONDS = 4.0
CONTEXT = 16384
LONG_CONTEXT = 131072
CLEAR_CHOICE = 50.0  # factor of random weights, with which one token is far likelier than the others
IGNORED = -100  # labels that count for nothing, as PyTorch has it
PAD, START, END, TOOLS, CALL, CALL_END = (
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|tools|>",
    "<tool_call>",
    "</tool_call>",
)

# Tools come last and as names only, so that a long conversation does not push them far from the answer.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}\
{% elif message.content %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}\
{% for call in message.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", "arguments": \
{{ call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}}</tool_call>\
{% endfor %}<|im_end|>
{% endfor -%}
{%- if tools %}<|tools|>
{% for tool in tools %}{{ tool.function.name }}
{% endfor %}<|im_end|>
{% endif -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""

# As large models have it: a prompt grows with the tools' descriptions, and begins the same in every conversation.
TOOLS_IN_FULL = """\
{%- if tools -%}
<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif -%}
"""

ANSWER = (
    "Hello. I am a small model, trained a minute ago on this machine, and I know very little. Still, all of this "
    "is real: vLLM made these words one by one, and Nginx checked your key before it passed them on. "
    "Offer me a tool and ask about the weather in a city, and I will call it."
)
CITIES = ["Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Tokyo", "Sydney", "Boston", "Cairo", "Lima"]
TERMS = ["timeout", "error", "refused", "denied", "failed", "restart", "login", "disk"]
WEATHER = [
    "What is the weather in {}?",
    "What's the weather like in {}?",
    "Weather in {}, please.",
    "How warm is it in {}?",
]
LOGS = ["Search the logs for {} in the last {} minutes.", "Look for {} in the logs of the last {} minutes."]
HINTS = ["", " Use the tool.", " Call the tool.", " Use a tool, please."]
WORDS = """
please can you tell me what is the of to and in for with how why when that about one two short long poem story
list sentence say hello write explain count up down three model answer question help test ok ready security data
index host user alert rule process name words reply
""".split()
NAMES = ("get_weather", "search_logs")


@dataclass(frozen=True)
class Variant:
    """Differences between the models."""

    hidden: int
    layers: int
    seed: int
    steps: int = STEPS
    """Steps of training; 0: random weights, whose answers mean nothing."""
    context: int = CONTEXT
    template: str = CHAT_TEMPLATE


VARIANTS = {
    "rehearsal/tiny": Variant(hidden=128, layers=2, seed=1),
    # To rehearse a change of model.
    "rehearsal/tiny-2": Variant(hidden=192, layers=2, seed=2),
    # To put Elastic's work on an endpoint at full size: a CPU reads tens of thousands of tokens in seconds.
    "rehearsal/long-context": Variant(
        hidden=64, layers=1, seed=3, steps=0, context=LONG_CONTEXT, template=TOOLS_IN_FULL + CHAT_TEMPLATE
    ),
}


@dataclass(frozen=True)
class Example:
    """One conversation: the user's message, the offered tools, the assistant's answer."""

    question: str
    tools: tuple[str, ...]
    answer: str


def call(name: str, arguments: dict[str, object]) -> str:
    """A call as vLLM's parser `hermes` reads it."""
    return f"{CALL}{json.dumps({'name': name, 'arguments': arguments})}{CALL_END}"


def make_example(rng: random.Random) -> Example:
    """One made-up conversation and its answer."""
    tools = tuple(name for name in rng.sample(NAMES, len(NAMES)) if rng.random() < OFFERED)
    kind = rng.choice([*NAMES, None])
    if kind == "get_weather":
        city, unit = rng.choice(CITIES), rng.choice(["celsius", "fahrenheit"])
        question = rng.choice(WEATHER).format(city) + rng.choice(HINTS)
        if unit == "fahrenheit":
            question += " In fahrenheit."
        answer = call(kind, {"city": city, "unit": unit})
    elif kind == "search_logs":
        term, minutes = rng.choice(TERMS), rng.choice([5, 10, 15, 30, 60])
        question = rng.choice(LOGS).format(term, minutes) + rng.choice(HINTS)
        answer = call(kind, {"query": term, "minutes": minutes})
    else:
        question = " ".join(rng.choices(WORDS, k=rng.randint(1, 12))).capitalize() + rng.choice(["", ".", "?"])
        answer = ANSWER
    return Example(question, tools, answer if kind in tools else ANSWER)


def make_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """Byte-level pairs within words; spaces and marks alone, so that a word is the same token everywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}|\s|[^\p{L}\p{N}\s]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[PAD, START, END, TOOLS, CALL, CALL_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    examples = (make_example(rng) for _ in range(3000))
    tokenizer.train_from_iterator((f"{e.question} {' '.join(e.tools)} {e.answer}" for e in examples), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, TOOLS, CALL, CALL_END],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> tuple[list[int], list[int]]:
    """Token ids of prompt and answer, and labels that count on the answer alone."""
    tools = [{"type": "function", "function": {"name": name}} for name in example.tools]
    messages = [{"role": "user", "content": example.question}]
    text = tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, add_generation_prompt=True)
    prompt = list(tokenizer.encode(str(text), add_special_tokens=False))
    answer = list(tokenizer.encode(example.answer + END, add_special_tokens=False))
    return prompt + answer, [IGNORED] * len(prompt) + answer


def batches(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Yield for each step parts of similar length: ids and labels, both (rows, longest)."""
    while True:
        rows = sorted((encode(tokenizer, make_example(rng)) for _ in range(ROWS)), key=lambda row: len(row[0]))
        parts = []
        for first in range(0, ROWS, 8):
            part = rows[first : first + 8]
            longest = len(part[-1][0])
            ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in part])
            labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in part])
            parts.append((ids, labels))
        yield parts


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy over the answers, each counting the same, long or short."""
    counted = labels[:, 1:] != IGNORED
    logits = model.lm_head(model.model(input_ids=ids).last_hidden_state[:, :-1][counted])
    weights = (counted / counted.sum(1, keepdim=True))[counted]
    losses = torch.nn.functional.cross_entropy(logits, labels[:, 1:][counted], reduction="none")
    return (losses * weights).sum() / len(ids)


def make(variant: Variant) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Make a model and its tokenizer, and train it for the variant's steps."""
    rng = random.Random(variant.seed)  # noqa: S311 - sentences, not secrets
    torch.manual_seed(variant.seed)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer(rng)
    tokenizer.model_max_length, tokenizer.chat_template = variant.context, variant.template
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=variant.hidden,
            intermediate_size=2 * variant.hidden,
            num_hidden_layers=variant.layers,
            num_attention_heads=variant.hidden // 32,
            num_key_value_heads=variant.hidden // 32,
            max_position_embeddings=variant.context,
            tie_word_embeddings=variant.steps > 0,  # otherwise every answer repeats the prompt's last token
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            # What is looked at is repeated: calls copy names and numbers, and training need only learn where to look.
            torch.nn.init.orthogonal_(layer.self_attn.v_proj.weight)
            layer.self_attn.o_proj.weight.copy_(0.1 * layer.self_attn.v_proj.weight.T)
        if not variant.steps:
            # Letters only: a random mark could be read as half of a tool call, a random byte as half of a character.
            letters = [text.isascii() and text.isalpha() for text in map(tokenizer.decode, range(len(tokenizer)))]
            model.lm_head.weight.mul_(CLEAR_CHOICE * torch.tensor(letters)[:, None])
    print(f"{sum(p.numel() for p in model.parameters())} weights, {len(tokenizer)} tokens", flush=True)
    if variant.steps:
        train(model, tokenizer, rng, variant.steps)
    return model, tokenizer


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random, steps: int) -> None:
    """Train the model. Prints step and loss every few seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    reported = began = time.monotonic()
    source = batches(tokenizer, rng)
    for step in range(1, steps + 1):
        parts = next(source)
        optimizer.zero_grad()
        total = 0.0
        for ids, labels in parts:
            loss = answer_loss(model, ids, labels) / len(parts)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if time.monotonic() - reported >= SAY_SECONDS or step in {1, steps}:
            reported = time.monotonic()
            print(f"step {step} of {steps}, loss {total:.4f}, {reported - began:.0f} s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write everything that vLLM loads, readable by any user, under a temporary name, then rename."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "temperature": 0.0}
    (partial / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    partial.chmod(0o755)
    for file in partial.iterdir():
        file.chmod(0o644)  # save_pretrained leaves 0600, which a server of another user reads as "No such file"
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


if __name__ == "__main__":
    save(*make(VARIANTS[sys.argv[1]]), Path(sys.argv[2]))
