"""A conversation with ONNX Runtime, NumPy and tokenizers alone: WINDOW=2048 python onnx_generate.py FOLDER [TEXT ...].

FOLDER was made by `lm2 export`. Each TEXT is a turn. At a turn's end the memory takes in what was said (a fold); when the window is full, a new one
begins with the last turns, and everything older is in the memory alone. A memory of cell `released` cannot fold: there every turn is a window.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

folder, turns = sys.argv[1], sys.argv[2:] or ["My pet is a goldfish.", "It lives in a blue bowl.", "What is my pet?"]
config = json.loads(Path(folder, "config.json").read_text())
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.no_truncation()  # what the file says of either is for batches of training texts
tokenizer.no_padding()
session = ort.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
pairs = json.loads(session.get_modelmeta().custom_metadata_map["lm2.state"])  # past name -> present name

GO_ON, BEGIN, FOLD = 0, 1, 3
gated, chunk = "past_folded" in pairs, config["memory"]["chunk"]
window = int(os.environ.get("WINDOW", min(2048, config["max_position_embeddings"]))) if gated else chunk
kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
binding = session.io_binding()
sizes = {"batch": 1, "window": window}
state = {i.name: np.zeros([sizes.get(s, s) for s in i.shape], kinds[i.type]) for i in session.get_inputs() if i.name in pairs}
if config["memory"]["init"] == "eye":
    state["past_bank"] += np.eye(*state["past_bank"].shape[2:], dtype=np.float32)
for name, array in state.items():  # the graph writes the state where it read it
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    binding.bind_output(pairs[name], "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
window = state["past_key.0"].shape[2] if gated else window  # a file may fix it
logits = np.zeros((1, 1, config["vocab_size"]), np.float32)
binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)


def step(ids: list[int], new_chunk: int, carry: int) -> int:
    """One call; the likeliest next token."""
    feeds = {"input_ids": [ids], "new_chunk": [new_chunk], "carry": [carry], "logits_from": [-1]}
    for name, value in feeds.items():
        if gated or name != "carry":
            binding.bind_cpu_input(name, np.array(value, np.int64))
    session.run_with_iobinding(binding)
    return int(logits[0, -1].argmax())


def feed(ids: list[int], new_chunk: int = GO_ON, carry: int = 0) -> int:
    """Feed ids in as many calls as it takes: no more than a chunk between two folds. The likeliest next token."""
    while gated:
        length = 0 if new_chunk == BEGIN else int(state["past_length"][0])
        folded = carry if new_chunk == BEGIN else int(state["past_folded"][0])
        folded = max(folded, length) if new_chunk == FOLD else folded
        room = folded + chunk - length
        if room == 0:
            new_chunk = FOLD
            continue
        token, ids, new_chunk = step(ids[:room], new_chunk, carry), ids[room:], GO_ON
        if not ids:
            return token
    return step(ids, new_chunk, carry)


said: list[list[int]] = []  # the window's turns
for turn in turns:
    ids = tokenizer.encode(f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False).ids
    if gated and said and sum(map(len, said)) + len(ids) + 24 <= window:
        token = feed(ids, FOLD)
    else:  # the next window begins with the last turns, which are in the memory and not written again
        while said and (not gated or sum(map(len, said)) > window // 2):
            said.pop(0)
        carried = [token for turn in said for token in turn]
        if carried:
            feed(carried, BEGIN, len(carried))
        token = feed(ids, GO_ON if carried else BEGIN)
    answer: list[int] = []
    while token not in config["eos_token_id"] and len(answer) < 24 and state["past_length"][0] < window:
        answer.append(token)
        token = feed([token])
    said.append(ids + answer)
    print(json.dumps({"turn": turn, "tokens": answer, "answer": tokenizer.decode(answer), "window": int(state["past_length"][0])}))
