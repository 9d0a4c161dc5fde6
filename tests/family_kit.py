"""Tiny random checkpoints of every family, made by transformers, and what a converted one is measured by."""

import json

import numpy as np
import sources

IDS = np.random.default_rng(5).integers(0, 96, (2, 20))
GATE = 1e-5  # relative L2 of float32 logits against transformers; a fold or a flag left out is above FAULT
FAULT = 1e-3
NEXT = 6  # tokens decoded greedily
BASE = dict(vocab_size=96, num_hidden_layers=3, max_position_embeddings=64, pad_token_id=None, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
# Grouped heads; heads of a width of their own; odd sizes.
GROUPED = dict(hidden_size=48, intermediate_size=56, num_attention_heads=4, num_key_value_heads=2)
OWN_WIDTH = dict(hidden_size=40, intermediate_size=72, num_attention_heads=5, num_key_value_heads=1, head_dim=16)
SQUARE = dict(hidden_size=36, intermediate_size=44, num_attention_heads=3, num_key_value_heads=3)
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
YARN = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 1.5, "beta_slow": 0.25}}
LONG = {
    "rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0], "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0],
    "partial_rotary_factor": 0.85,
}  # fmt: skip
PART = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.4}}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
TWO = {
    "full_attention": {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 60.0},
}
FACTORS = dict(embedding_multiplier=12.0, attention_multiplier=0.11, residual_multiplier=0.22, logits_scaling=8.0, rms_norm_eps=0.05)
# family -> (class of transformers, its checkpoints: name -> fields)
FAMILIES = {
    "llama": ("Llama", {"grouped": GROUPED | YARN, "own width": OWN_WIDTH | THETA | dict(attention_bias=True, mlp_bias=True)}),
    "mistral": ("Mistral", {"grouped": GROUPED | THETA | dict(sliding_window=None), "window": OWN_WIDTH | dict(sliding_window=7)}),
    "qwen2": ("Qwen2", {
        "grouped": GROUPED | THETA,
        "tied": SQUARE | YARN | dict(tie_word_embeddings=True),
        "window": GROUPED | THETA | dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
    }),
    "seed_oss": ("SeedOss", {"inner": OWN_WIDTH | dict(residual_dropout=0.0, attention_dropout=0.0), "outer": GROUPED | dict(head_dim=12, attention_bias=False, attention_out_bias=True)}),
    "phi3": ("Phi3", {
        "grouped": GROUPED | THETA,
        "part": SQUARE | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.7}},
        "long": GROUPED | {"rope_parameters": LONG, "original_max_position_embeddings": 32},
        "window": GROUPED | THETA | dict(sliding_window=3),
    }),
    "granite": ("Granite", {"tied": GROUPED | FACTORS | dict(tie_word_embeddings=True), "untied": SQUARE | THETA | FACTORS | dict(attention_bias=True, mlp_bias=True)}),
    "ernie4_5": ("Ernie4_5", {"grouped": GROUPED | dict(head_dim=12), "own width": OWN_WIDTH | dict(use_bias=True, tie_word_embeddings=False)}),
    "qwen3": ("Qwen3", {
        "grouped": GROUPED | THETA | dict(head_dim=8),
        "own width": OWN_WIDTH | YARN | dict(attention_bias=True, tie_word_embeddings=True),
        "window": OWN_WIDTH | THETA | dict(use_sliding_window=True, sliding_window=4, layer_types=MIXED),
    }),
    "smollm3": ("SmolLM3", {
        "grouped": GROUPED | THETA | dict(no_rope_layers=[0, 1, 0]),
        "interval": SQUARE | dict(no_rope_layer_interval=2, tie_word_embeddings=False),
        "window": GROUPED | THETA | dict(no_rope_layers=[0, 1, 0], use_sliding_window=True, sliding_window=5),
    }),
    "olmo2": ("Olmo2", {"grouped": GROUPED | THETA, "biases": OWN_WIDTH | dict(attention_bias=True)}),
    "olmo3": ("Olmo3", {"grouped": GROUPED | dict(sliding_window=9, layer_types=MIXED, rope_parameters=TWO), "alike": SQUARE | dict(sliding_window=64)}),
    "exaone4": ("Exaone4", {
        "grouped": GROUPED | THETA | dict(sliding_window=11, layer_types=MIXED),
        "no window": OWN_WIDTH | THETA | dict(sliding_window=None, layer_types=["full_attention"] * 3, tie_word_embeddings=True),
    }),
    "gemma3_text": ("Gemma3Text", {
        "grouped": GROUPED | dict(head_dim=12, sliding_window=8, layer_types=MIXED, rope_parameters=TWO, query_pre_attn_scalar=5),
        "own width": OWN_WIDTH | dict(sliding_window=64, attention_bias=True, tie_word_embeddings=False),
    }),
    "gemma": ("Gemma", {
        "grouped": GROUPED | THETA | dict(head_dim=12),
        "own width": OWN_WIDTH | dict(attention_bias=True, tie_word_embeddings=False),
    }),
    "glm": ("Glm", {"grouped": GROUPED | dict(head_dim=12), "third": SQUARE | {"head_dim": 12} | PART}),
    "glm4": ("Glm4", {"grouped": GROUPED | dict(head_dim=12, attention_bias=False), "own width": OWN_WIDTH | PART}),
    "hyperclovax": ("HyperCLOVAX", {
        "grouped": GROUPED | THETA | FACTORS | dict(logits_scaling=0.125, head_dim=16, tie_word_embeddings=True),
        "norms before": SQUARE | FACTORS | dict(logits_scaling=0.3, attention_multiplier=None, use_post_norm=False, attention_bias=True, mlp_bias=True),
    }),
    "helium": ("Helium", {"grouped": GROUPED | dict(head_dim=12), "biases": SQUARE | dict(head_dim=12, attention_bias=True, mlp_bias=True)}),
}  # fmt: skip
SHAPES = [(family, name) for family, (_, shapes) in FAMILIES.items() for name in shapes]


def checkpoint(family, name, seed=3, **more):
    """A random transformers model in float32, evaluation mode: every matrix, norm and bias is drawn."""
    import torch
    import transformers

    title, shapes = FAMILIES[family]
    fields = json.loads(json.dumps(BASE | shapes[name] | more))  # transformers writes into what it is given
    config = getattr(transformers, f"{title}Config")(**fields)
    prefix = title.removesuffix("Text")
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            centre = 1.0 if "norm" in key and not prefix.startswith("Gemma") else 0.0
            p.copy_(torch.randn(p.shape) * (0.3 if p.dim() < 2 else 0.2) + centre)
    return model


def made(folder, family, name, **more):
    """The checkpoint and the folder it was saved to."""
    model = checkpoint(family, name, **more)
    return model, sources.save_hf(model, folder)


def backend_logits(folder, ids, backend="torch"):
    """Logits (b, t, v) of a memory never written, all positions in one call."""
    from lm2.runtime.backend import BackendOptions, open_backend

    threads = {} if backend == "mlx" else {"threads": 1}
    opened = open_backend(backend, folder, BackendOptions(device="cpu", dtype="float32", **threads))
    return opened.extend(ids, opened.start(len(ids), window=ids.shape[1]), all_logits=True)[0]


def in_pieces(folder, ids, cuts, backend="torch"):
    """As `backend_logits`, in calls that end at `cuts` and one for the rest."""
    from lm2.runtime.backend import BackendOptions, open_backend

    opened = open_backend(backend, folder, BackendOptions(device="cpu", dtype="float32", **({} if backend == "mlx" else {"threads": 1})))
    window, out = opened.start(len(ids), window=ids.shape[1]), []
    for piece in np.split(ids, list(cuts), axis=1):
        logits, window = opened.extend(piece, window, all_logits=True)
        out.append(logits)
    return np.concatenate(out, axis=1)


def error(got, want):
    """Relative L2."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def greedy(step, ids, count=NEXT):
    """`count` tokens of each row after ids, where step(ids) gives logits (b, t, v)."""
    for _ in range(count):
        ids = np.concatenate([ids, step(ids)[:, -1].argmax(-1)[:, None]], axis=1)
    return ids[:, -count:]
