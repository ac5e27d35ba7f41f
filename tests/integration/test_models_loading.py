"""The lab's model is a real one: what serves models loads it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from tests.lab.models import VOCABULARY, make_tiny_model, weight_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model(folder)
    return folder


def test_the_configuration_is_a_qwen2s(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert type(config).__name__ == "Qwen2Config"
    assert config.vocab_size == VOCABULARY


@pytest.mark.parametrize("text", ["Hello, what is it?", "你好，今天天气怎么样？", "\t🙂\n  x"])
def test_the_tokenizer_gives_every_text_back(folder: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert len(tokens) < len(text.encode()) + 1
    assert max(tokens) < VOCABULARY


def test_the_tokenizer_has_a_chat_template(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "你好"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(text)[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_every_weight_is_in_the_shard_that_the_index_names(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    places = index["weight_map"]
    shapes = {}
    for file in sorted(set(places.values())):
        with safe_open(folder / file, "np") as shard:
            for name in shard.keys():  # noqa: SIM118 - it is no mapping
                assert places[name] == file
                weights = shard.get_tensor(name)
                assert np.isfinite(weights).all()
                shapes[name] = weights.shape
    assert shapes == weight_shapes()
    assert len(set(places.values())) == 3
    assert index["metadata"]["total_size"] == sum(4 * np.prod(s) for s in shapes.values())


def test_a_seed_gives_the_same_bytes_and_another_other_weights(
    folder: Path, tmp_path: Path
) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        make_tiny_model(tmp_path / name, seed=seed)
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(paths) == 10
    for path in paths:
        mine = (folder / path).read_bytes()
        assert (tmp_path / "same" / path).read_bytes() == mine
        differs = (tmp_path / "other" / path).read_bytes() != mine
        assert differs == (path.suffix == ".safetensors")


@pytest.mark.skipif(not find_spec("torch"), reason="PyTorch, which is not among our dependencies")
def test_the_model_answers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer("你好", return_tensors="pt")
    answer = model.generate(**asked, max_new_tokens=4, min_new_tokens=4)
    assert not any(loading.values())
    assert answer.shape == (1, asked["input_ids"].shape[1] + 4)
