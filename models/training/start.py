"""What weights training starts from: a small model drawn from a seed, or a memory copied from a finished model's own attention.

Knows shapes and values; computes no loss. Both starts make a memory that already finds rows by likeness (query and key maps agree, values
and contents keep the hidden state), so that training begins with binding and not with noise; docs/decisions.md has the measurements.

Axes: d hidden, v vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ..checkpoints.adapter import Adapter, check_shapes
from ..checkpoints.source import stored_tensors, whole
from ..checkpoints.warmstart import attention_matrix
from ..config import LM2Config, MemoryConfig
from ..errors import ConvertError
from ..layout import ModelFolder
from ..lm2 import LM2
from ..memory import GatedMemory
from ..tensorfile import read_tensor
from ..weights import new_model, slots_of

TINY = MemoryConfig(cell="gated", slots=1024, chunk=64, layers=(1, 2), heads=4, head_dim=32, init="zeros")

WHITE = 0.05  # added to every direction of the topics' features, of which the mean variance is 1, before they are made equally wide
TOPIC_SHARP = 4.9  # how far rows and questions of new topics are scaled up
SPOKEN = 0.5  # how loud a new memory says the words it looks at, as a share of the residual stream it speaks into
RIDGE = 0.05  # added to every direction where a map is fitted, of which the mean is 1
EMBEDDED = 0.3  # the deviation of a small model's embeddings at the start
KEPT_TOPICS = 4.0  # its sigmoid is what stays of a topics' row when another is written over it

BABI = MemoryConfig(cell="gated", slots=1024, chunk=32, layers=(2, 4), heads=4, head_dim=32, init="zeros")


def tiny_config(vocabulary: int, end: int) -> LM2Config:
    """The shape of lm2-tiny: 4 layers of width 128, memories in layers 1 and 2 with 1,024 rows, chunks of 64 tokens."""
    return _small(vocabulary, end, "lm2-tiny", 4, TINY)


def babi_config(vocabulary: int, end: int) -> LM2Config:
    """The shape of lm2-babi: 6 layers of width 128, memories in layers 2 and 4 with 1,024 rows, chunks of 32 tokens.

    Two layers below the first memory bind a sentence to those before it in the chunk; what was read there is in the second memory's input.
    """
    return _small(vocabulary, end, "lm2-babi", 6, BABI)


def _small(vocabulary: int, end: int, name: str, layers: int, memory: MemoryConfig) -> LM2Config:
    return LM2Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        memory=memory,
        max_position_embeddings=memory.chunk,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=(end,),
        name=name,
    )


def fresh(config: LM2Config, seed: int) -> LM2:
    """A model from scratch (cell gated), float32, trainable. Every value is a function of the config and the seed.

    Forget biases are spread from 2.5 to 8: half-lives from 8 to 2,000 chunks side by side are a clock, by which the later of two facts is told.
    """
    model = new_model(config)
    generator = torch.Generator().manual_seed(seed)
    slots = dict(slots_of(model))
    for name, slot in slots.items():
        if slot.dim() != 2:
            slot.fill_(1.0 if "norm" in name else 0.0)
            continue
        deviation = EMBEDDED if "embed" in name else slot.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation *= 0.4
        if "gate.weight" in name and "memory" in name:
            deviation *= 0.3
        slot.copy_(torch.randn(slot.shape, generator=generator) * deviation)
    for name, slot in slots.items():
        if name.endswith("memory.input_gate.bias"):
            slot.fill_(1.5)
        elif name.endswith("memory.forget_gate.bias"):
            slot.copy_(torch.linspace(2.5, 8.0, slot.numel()))
        elif name.endswith("memory.content.weight"):
            slot.copy_(0.5 * torch.eye(slot.shape[0]) + 0.1 * slot)
        elif name.endswith("memory.v_proj.weight") and slot.shape[0] == slot.shape[1]:
            slot.copy_(torch.eye(slot.shape[0]) + 0.1 * slot)
        elif name.endswith("memory.k_proj.weight"):
            slot.copy_(slots[name.replace("k_proj", "q_proj")])
    return model.train().requires_grad_(True)


def adapter_memory(config: LM2Config, layers: tuple[int, ...], chunk: int, blocks: int) -> MemoryConfig:
    """The memory of an adapter: zeros at the start, `blocks` chunks before a row is written again, a head for each key/value head of the backbone's
    attention, twice as wide where several of its heads share one. Rows are made of the token alone: with what it read in them, facts told after the first
    chunk were found less often; they are found by the row before as well (docs/decisions.md)."""
    heads = config.num_key_value_heads
    width = config.head_dim * (2 if config.num_attention_heads > heads else 1)
    return with_topics(MemoryConfig("gated", chunk * blocks, chunk, layers, heads, width, "zeros", output_projection=True, content="token", keys="pair"))


def with_topics(memory: MemoryConfig) -> MemoryConfig:
    """The memory with output gates that the token opens too and, unless it has some, with topics: of the lowest layers, every other one, three at most."""
    memory = replace(memory, opens="both")
    if memory.topics:
        return memory
    low = tuple(i for i in (0, 2, 4) if i < memory.layers[0])
    return replace(memory, topics=low, topic_around=min(memory.topic_around, (memory.slots - 1) // 2))


def warm(folder: ModelFolder, memory: MemoryConfig, seed: int, half: bool) -> LM2:
    """The backbone of `folder` with a new memory that begins as the layers' own attention; only the memory is trainable.

    Memory heads as many as key/value heads, as wide or wider, start as those: keys and values theirs, queries the mean of the heads that share them, the
    projection of what is read the sum. Raises ConvertError for other numbers of heads.

    half: the backbone's matrices in bfloat16. The content map undoes the norm's weight (0.5 / g), so that a row keeps half the hidden state's
    shape whatever g is. Forget biases are spread from 4 to 8, in an order drawn from the seed.
    """
    config = replace(folder.config, memory=memory)
    config.check()
    model = new_model(config, frozen=lambda name: half)
    generator = torch.Generator().manual_seed(seed)
    d, groups = config.hidden_size, config.num_attention_heads // config.num_key_value_heads
    grouped = (memory.heads, memory.head_dim) != (config.num_attention_heads, config.head_dim)
    if grouped and (memory.heads != config.num_key_value_heads or memory.head_dim < config.head_dim):
        raise ConvertError(
            f"memory.heads {memory.heads} of {memory.head_dim} must be the attention's {config.num_attention_heads} of {config.head_dim}, "
            f"or {config.num_key_value_heads}, one for each of its key/value heads, of {config.head_dim} or more"
        )
    tensors = stored_tensors(folder.weights, folder.header)
    with open(folder.weights, "rb") as f:

        def value(name: str) -> Tensor:
            info = folder.header.tensors[name]
            raw = torch.from_numpy(read_tensor(f, info))
            return (raw.view(torch.bfloat16) if info.dtype == "BF16" else raw).float()

        def attention(before: str, part: str) -> Tensor:
            """A matrix of the layer's attention as its memory starts from it, float32."""
            return torch.from_numpy(whole(attention_matrix(config, before, part, tensors))).float()

        def sizes(before: str) -> Tensor:
            """The weight of the norm before the layer's attention (d,), ones where there is none."""
            return torch.ones(d) if config.backbone.norms == "after" else value(f"{before}input_layernorm.weight")

        for name, slot in slots_of(model):
            before, inside, part = name.partition("memory.")
            if not inside:
                slot.copy_(value(name))
            elif grouped and part in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"):
                slot.copy_(_of_groups(attention(before, part), part[0], memory, config.head_dim, generator))
            elif part in ("q_proj.weight", "o_proj.weight"):
                slot.copy_(attention(before, part))
            elif part in ("k_proj.weight", "v_proj.weight"):
                own = attention(before, part).view(-1, config.head_dim, d)
                slot.copy_(own.repeat_interleave(groups, 0).reshape(-1, d))
            elif part in ("norm.weight", "bank_norm.weight"):
                slot.copy_(sizes(before))
            elif part == "content.weight":
                slot.copy_(torch.diag(0.5 / sizes(before).clamp(min=0.02)))
            elif part == "forget_gate.bias":
                slot.copy_(torch.linspace(4.0, 8.0, d)[torch.randperm(d, generator=generator)])
            elif part.startswith(("open_gate.", "v_topic_proj.")):
                slot.zero_()
            elif part == "topic_norm.weight":
                slot.fill_(1.0)
            elif part.startswith("topics."):
                slot.fill_(KEPT_TOPICS if part == "topics.keep" else 1.0 if part == "topics.gain" else 0.0)
            elif part.endswith("gate.bias"):
                slot.zero_()
            else:
                slot.copy_(torch.randn(slot.shape, generator=generator) * 0.2 * d**-0.5)
    for name, p in model.named_parameters():
        p.requires_grad_(".memory." in name)
    return model.train()


def _of_groups(own: Tensor, part: str, memory: MemoryConfig, width: int, generator: torch.Generator) -> Tensor:
    """An attention's matrix for one memory head per key/value head, (h e, d), of `o` (d, h e); what is wider than the attention's heads is small and drawn."""
    h, e = memory.heads, memory.head_dim
    own = own.T if part == "o" else own  # (heads w, d)
    d = own.shape[1]
    per = own.reshape(h, -1, width, d)  # (h, g, w, d)
    whole = torch.randn(h, e, d, generator=generator) * 0.2 * d**-0.5  # (h, e, d)
    whole[:, :width] = per.sum(1) if part == "o" else per.mean(1)
    made = whole.reshape(h * e, d)
    return made.T if part == "o" else made


@torch.no_grad()
def begin_topics(model: LM2, features: Tensor, asked: Tensor, seed: int) -> None:
    """Start the topics: features (n, f) of what is told, and means (p, f) of what was asked lately, are centred and made equally wide in every direction,
    for rows and for questions alike, so that rare words count most (docs/decisions.md)."""
    topics = model.topics
    assert topics is not None
    told = features.double().cpu()
    middle, scale = told.mean(0), told.std(0) + 1e-6
    z = (told - middle) / scale  # (n, f)
    d, f = topics.write.weight.shape
    values, vectors = torch.linalg.eigh(z.T @ z / len(z) + WHITE * torch.eye(f, dtype=torch.double))
    white = vectors @ torch.diag(values**-0.5) @ vectors.T / scale  # (f, f)
    if d != f:
        drawn = torch.randn(max(d, f), min(d, f), dtype=torch.double, generator=torch.Generator().manual_seed(seed))
        turn = torch.linalg.qr(drawn)[0]  # (most, least), columns of length 1
        white = (turn if d > f else turn.T) @ white  # (d, f)
    for part, at in ((topics.write, middle), (topics.query, asked.double().cpu().mean(0))):
        part.weight.copy_(TOPIC_SHARP * white)
        part.bias.copy_(-TOPIC_SHARP * white @ at)


@torch.no_grad()
def begin_words(model: LM2, rows: Tensor, ids: Tensor, loudness: Sequence[float]) -> None:
    """Start what values have of the topics' rows (`values: topics`): what a memory looks at it says. From rows (n, d) of tokens ids (n,), ridge regression
    finds the tokens' directions in the head; each memory's map is what its projection turns into those, as loud as SPOKEN of `loudness`, the size of the
    residual stream in its layer (docs/decisions.md)."""
    said = model.embed_tokens.weight.double().cpu() if model.config.tie_word_embeddings else model.lm_head.weight.double().cpu()  # (v, d)
    said = said / said.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    for (layer, _), size in zip(model.bank_of.items(), loudness, strict=True):
        memory = cast(GatedMemory, model.blocks[layer].memory)
        assert memory.topic_norm is not None and memory.v_topic_proj is not None and memory.o_proj is not None
        words = memory.topic_norm(rows.float()).double().cpu()  # (n, d)
        to_head = _fitted(words, said[ids.cpu()] - said.mean(0))  # (d, d)
        out = memory.o_proj.weight.double().cpu()  # (d, h e)
        mean = (out * out).sum() / out.shape[1]
        inward = torch.linalg.solve(out.T @ out + RIDGE * mean * torch.eye(out.shape[1], dtype=torch.double), out.T)  # (h e, d)
        memory.v_topic_proj.weight.copy_(SPOKEN * size * inward @ to_head.T)


def _fitted(x: Tensor, y: Tensor) -> Tensor:
    """The map (d, e) from x (n, d) to y (n, e), by ridge regression."""
    square = x.T @ x
    return torch.linalg.solve(square + RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=x.dtype), x.T @ y)


def check_layers(adapter: Adapter, layers: tuple[int, ...]) -> None:
    """Raise ConvertError for an adapter of none of these layers."""
    if not set(adapter.memory.layers) & set(layers):
        raise ConvertError(f"{adapter.path} has memories for layers {adapter.memory.layers}, the model for {layers}: name one of its layers")


@torch.no_grad()
def take(model: LM2, adapter: Adapter, key: str) -> None:
    """Copy an adapter's tensors into a model whose memory has its sizes, in the layers that both have. key: the model's backbone. Raises ConvertError
    for another one."""
    if adapter.key != key:
        raise ConvertError(
            f"{adapter.path} is a memory for {adapter.name} (backbone {adapter.key[:12]}), the model is another (backbone {key[:12]}): "
            "give its own adapter, or leave --adapter out"
        )
    own = replace(model.config, memory=adapter.memory)
    check_shapes(adapter, own)
    tensors = adapter.tensors(own)
    for name, slot in slots_of(model):
        if name in tensors:
            slot.copy_(torch.from_numpy(whole(tensors[name])))
