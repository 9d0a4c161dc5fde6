"""A small BERT made by transformers with random weights, as a folder, and the encoder made of it."""

import json
from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "zebra", "eats", "plums", "my", "brother", "is", "a", "baker", "horse", "##s", "striped", "animal", "?", "b", "c"]


def bert(folder: Path, seed=0):
    """Writes a BERT's folder; returns the model, which is in float32 and knows no dropout."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, max_position_embeddings=32)
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.3 if p.dim() == 2 else 0.2) + (1.0 if p.dim() == 1 and bool((p == 1).all()) else 0.0))
    model.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "position_embedding_type": "absolute"}))
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def wide(encoder):
    """An encoder's matrices as numbers, to be put in a reference."""
    import numpy as np

    return {n: a.astype(np.float32) * encoder.arrays[f"{n}.step"][:, None] for n, a in encoder.arrays.items() if a.dtype == np.int8}
