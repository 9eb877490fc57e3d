"""A tiny random BERT as a sentence encoder, saved as a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.tiny import TEXT

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def make_tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """Save a random BERT of two layers and width 16, whose words are those of the tests' text and single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = sorted({word.strip(".,").lower() for word in TEXT.split()})
    pieces = [*_SPECIAL, *dict.fromkeys([*words, *letters, *(f"##{letter}" for letter in letters)])]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    network = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        network.embeddings.word_embeddings.weight.normal_(0, 1.0)
    network.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder
