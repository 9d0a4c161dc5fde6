"""Which of a Llama's own heads look up what was said: where each layer's attention goes when a value told earlier in the window is about to be said.

    python benchmarks/copy_heads.py smollm2

Facts are told in people's words among other talk (models/tasks/natural, training part), then asked, the right answer given token by token. For each
layer and head: how often the first token of the value gets more attention than any other token of the conversation, with positions as they are and
with none (as a memory reads, whose rows have no positions). A memory starts from its layer's own attention, so these are the layers to give one.
Prints a table by layer, the best head of each and the mean over heads; --json FILE writes all. Seeded; nothing is trained, nothing is timed.

Axes: q questions, t positions of a question, s positions of the window, h heads, k key/value heads, e head width.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from torch import Tensor

from lm2.models.layout import open_folder
from lm2.models.llama import rotate
from lm2.models.lm2 import LM2
from lm2.models.tasks.natural import talk
from lm2.models.tasks.varied import Varied
from lm2.models.text.template import ChatTemplate
from lm2.models.text.tokenizer import Tokenizer
from lm2.models.training import prefixed
from lm2.models.training.people import turns_of
from lm2.models.training.threads import Question, Threads
from lm2.models.training.turns import chat_turns
from lm2.models.weights import load_model
from lm2.runtime.loading import find_model

WINDOW = 420  # tokens of a conversation, at least


def heads_of(model: LM2, threads: Threads, conversations: int, seed: int) -> tuple[Tensor, Tensor, int]:
    """Shares (layers, h) of facts whose first token gets the most attention, with positions and without; and how many facts there were."""
    rng = random.Random(f"heads {seed}")
    tables = model.tables(2048)
    turned, plain = torch.zeros(2, len(model.layers), model.config.num_attention_heads)
    facts = 0
    for _ in range(conversations):
        thread = threads.thread(rng, WINDOW, 0.85)
        asked = [threads.question(rng, fact) for fact in {f.key: f for f in thread.facts}.values() if fact.at is not None]
        asked = [q for q in asked if q.value]
        facts += len(asked)
        a, b = _one(model, thread.ids, thread.head, asked, tables)
        turned, plain = turned + a, plain + b
    return turned / facts, plain / facts, facts


def _one(model: LM2, ids: list[int], head: int, asked: list[Question], tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    c, s = model.config, len(ids)
    x = model.embed_tokens(torch.tensor([ids]))  # (1, s, d)
    width = max(len(q.ids) for q in asked)
    y = model.embed_tokens(torch.tensor([[*q.ids, *[0] * (width - len(q.ids))] for q in asked]))  # (q, t, d)
    unread = prefixed.unread(model)
    turned, plain = torch.zeros(2, len(model.layers), c.num_attention_heads)
    for i, block in enumerate(model.blocks):
        keys: list[prefixed.KV] = []
        one = c.num_attention_heads + c.num_key_value_heads
        raw = block.self_attn.qkv_proj(block.input_layernorm(x)).view(s, -1, c.head_dim)[:, c.num_attention_heads : one]  # (s, k, e)
        below = x
        x = prefixed.layers(model, below, tables, unread, i, i + 1, None, keys)
        queries = block.self_attn.qkv_proj(block.input_layernorm(y)).view(len(asked), width, -1, c.head_dim)[:, :, : c.num_attention_heads]  # (q, t, h, e)
        cos, sin = (table[s : s + width, None] for table in tables)
        for n, q in enumerate(asked):
            at, place = q.fact.at[0], q.value[0]  # type: ignore[index, union-attr]
            for query, key, into in (
                (rotate(queries[n, place], cos[place], sin[place]), keys[0][0][0], turned),
                (queries[n, place], raw.transpose(0, 1), plain),
            ):
                grouped = query.view(c.num_key_value_heads, -1, c.head_dim)  # (k, h / k, e)
                scores = (grouped @ key.transpose(1, 2)).view(c.num_attention_heads, s)  # (h, s)
                scores[:, :head] = -torch.inf
                into[i] += scores.argmax(-1) == at
        y = prefixed.layers(model, y, tables, unread, i, i + 1, [keys[0]] * (i + 1))
    return turned, plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--conversations", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads [all]")
    parser.add_argument("--json", type=Path)
    known = parser.parse_args()
    if known.threads:
        torch.set_num_threads(known.threads)
    path = find_model(known.model)
    model = load_model(open_folder(path), "cpu").eval().float()
    tokenizer = Tokenizer.load(path)
    template = ChatTemplate.load(path, tokenizer)
    if template is None:
        raise SystemExit(f"{path} has no chat template: give a chat model")
    words = dict.fromkeys(talk.ordinary("train"), "I see.")
    head, *made = turns_of(tokenizer, chat_turns(template))
    threads = Threads(head, *made, Varied(), words)
    with torch.inference_mode():
        turned, plain, facts = heads_of(model, threads, known.conversations, known.seed)
    print(f"seed {known.seed}; {facts} facts; of {facts}, in %: the value's first token gets the most attention")
    print("layer  best head (positions)  mean  best head (none)  mean")
    for i, (a, b) in enumerate(zip(turned, plain, strict=True)):
        print(f"{i:>5}  {int(a.argmax()):>4} {a.max():>15.0%}  {a.mean():>4.0%}  {int(b.argmax()):>4} {b.max():>10.0%}  {b.mean():>4.0%}")
    if known.json:
        known.json.write_text(json.dumps({"seed": known.seed, "facts": facts, "positions": turned.tolist(), "none": plain.tolist()}, indent=1))


if __name__ == "__main__":
    main()
