"""Tiny configurations of every kind, for tests of every backend. Plain Python: imports no ML library."""

from dataclasses import replace

from lm2.models.config import BackboneConfig, LM2Config, MemoryConfig, RopeConfig


def config(cell="gated", pool="causal", vocab=61, layers=3, chunk=16, rows=1, memory_layers=(0, 2), width=32, **fields):
    """A Llama of 3 layers, width 32, 4 heads on 2 key/value heads. `rows` is k in N = k * T (gated)."""
    if cell == "released":
        chunk, memory = width, MemoryConfig("released", width, width, tuple(range(layers)), 4, width // 4, init="eye", gate_pool=pool)
    else:
        memory = MemoryConfig(
            "gated",
            rows * chunk,
            chunk,
            memory_layers,
            4,
            8,
            init=fields.pop("init", "zeros"),
            output_projection=fields.pop("output_projection", True),
            scale=fields.pop("scale", False),
            content=fields.pop("content", "both"),
            window=fields.pop("window", None),
            keys=fields.pop("keys", "row"),
            opens=fields.pop("opens", "read"),
            values=fields.pop("values", "row"),
            topics=fields.pop("topics", ()),
            topic_back=fields.pop("topic_back", 24),
            topic_around=fields.pop("topic_around", 10),
        )
    base = dict(
        vocab_size=vocab, hidden_size=width, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, memory=memory, rope=RopeConfig(500.0), tie_word_embeddings=True, rms_norm_eps=1e-5,
    )  # fmt: skip
    made = LM2Config(**(base | fields))
    made.check()
    return made


CELLS = {
    "gated": config(),
    "gated-eye": config(init="eye", output_projection=False, scale=True, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "gated-4T": config(rows=4),
    "gated-token": config(rows=2, content="token"),
    "gated-pair": config(rows=2, content="token", keys="pair"),
    "gated-topics": config(rows=2, content="token", keys="pair", opens="both", values="topics", layers=4, memory_layers=(2, 3), topics=(0, 1), topic_back=6, topic_around=2),
    "released-causal": config("released"),
    "released-chunk": config("released", "chunk"),
}
# Decoders that differ from a Llama, in each way at least once.
BACKBONES = {
    "norms of heads": BackboneConfig("head", (1,), "before", "gelu_tanh"),
    "norms after": BackboneConfig("whole", (0,), "after"),
    "norms around": BackboneConfig("head", (), "both", "gelu_tanh", 3.3, (0, 2), RopeConfig(60.0)),
    "windows": BackboneConfig(windows=(5, None, 3)),
}
ALONE = {  # for tests of windows
    "gated-topics-alone": replace(CELLS["gated-topics"], memory=replace(CELLS["gated-topics"].memory, values="row")),
    "gated-sliding": config(rows=4, backbone=BackboneConfig(windows=(7, None, 20))),
}
STREAMING = [name for name in CELLS if name != "released-chunk"]
