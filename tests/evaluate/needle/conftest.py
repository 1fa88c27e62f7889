"""A checkpoint that is loaded, with random weights, and an imported tokenizer that merges."""

import json
from pathlib import Path

import pytest

from evaluate.load_model import LoadedCheckpoint
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama


@pytest.fixture
def loaded(tokenizer: Tokenizer, tmp_path: Path) -> LoadedCheckpoint:
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    return LoadedCheckpoint(tmp_path, model, tokenizer, {})


@pytest.fixture(scope="session")
def merging_tokenizer() -> Tokenizer:
    """Return an imported tokenizer with pieces of letters, digits and punctuation together."""
    from tokenizers import AddedToken, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    from model.tokenizer.imported import ImportedTokenizer

    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=[AddedToken("<s>", special=True), AddedToken("</s>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    lines = [f"号是{number}。：号是{number}。" for number in range(100, 999)]
    backend.train_from_iterator(lines, trainer)
    serialized = {
        "definition": json.loads(backend.to_str()),
        "config": {"eos_token": "</s>"},
        "bos_id": 0,
        "eos_id": 1,
        "unk_id": None,
    }
    return ImportedTokenizer(json.dumps(serialized).encode())
