"""A model that is small but real: a Qwen2 with random weights and a tokenizer of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, LAYERS, HEADS, KEY_HEADS, INNER, VOCABULARY = 64, 2, 4, 2, 128, 512
CHINESE_FILE = "文档/使用说明.md"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPLIT = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
_TEXTS = (
    "A model in the lab says little of use, but it says it in real tokens.",
    "离线服务器上的模型需要完整的文件、正确的校验和，以及一个分词器。",
    "user assistant system: hello, what is the weather like today? 你好，今天天气怎么样？",
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(folder: Path, *, seed: int = 0, shards: int = 3) -> None:
    """Write a model that transformers loads, about 0.7 MB.

    Args:
        folder: Where; made when missing.
        seed: Other seeds give other weights and the same for the rest.
        shards: Into how many files the weights are divided.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config())
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": False},
    )
    _make_tokenizer().save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 512,
            "clean_up_tokenization_spaces": False,
            "chat_template": _CHAT_TEMPLATE,
        },
    )
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n\nRandom weights.\n")
    chinese = folder / CHINESE_FILE
    chinese.parent.mkdir(exist_ok=True)
    chinese.write_text("# 使用说明\n\n权重是随机的。\n")
    _write_shards(folder, seed, shards)


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Return the model's tensors by name, as transformers' Qwen2ForCausalLM calls them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    key_size = HIDDEN // HEADS * KEY_HEADS
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part, size in {"q": HIDDEN, "k": key_size, "v": key_size}.items():
            shapes[f"{name}.self_attn.{part}_proj.weight"] = (size, HIDDEN)
            shapes[f"{name}.self_attn.{part}_proj.bias"] = (size,)
        shapes[f"{name}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{name}.mlp.gate_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{name}.mlp.up_proj.weight"] = (INNER, HIDDEN)
        shapes[f"{name}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes[f"{name}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{name}.post_attention_layernorm.weight"] = (HIDDEN,)
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def _config() -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "intermediate_size": INNER,
        "vocab_size": VOCABULARY,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def _make_tokenizer() -> Tokenizer:
    """Return a byte-level BPE: it has a token for every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=[AddedToken(name, special=True) for name in _SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


def _write_shards(folder: Path, seed: int, shards: int) -> None:
    parts: list[dict[str, NDArray[np.float32]]] = [{} for _ in range(shards)]
    for position, (name, weights) in enumerate(_weights(seed)):
        parts[position * shards // len(weight_shapes())][name] = weights
    places = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(part, file))
    total = sum(weights.nbytes for part in parts for weights in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", index)


def _weights(seed: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    random = np.random.default_rng(seed)
    for name, shape in weight_shapes().items():
        if name.endswith("norm.weight"):
            yield name, np.ones(shape, np.float32)
        else:
            yield name, random.normal(0, 0.02, shape).astype(np.float32)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
