"""A conversation over three chunks with ONNX Runtime, NumPy and tokenizers alone: python onnx_generate.py FOLDER [TEXT ...].

FOLDER was made by `lm2 export`. Each TEXT is a turn in a chunk of its own, so what one chunk told the next can only have come through the memory.
"""

import json
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

kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
binding = session.io_binding()
state = {i.name: np.zeros([1 if s == "batch" else s for s in i.shape], kinds[i.type]) for i in session.get_inputs() if i.name in pairs}
if config["memory"]["init"] == "eye":
    state["past_bank"] += np.eye(*state["past_bank"].shape[2:], dtype=np.float32)
for name, array in state.items():  # the graph writes the state where it read it
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    binding.bind_output(pairs[name], "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
logits = np.zeros((1, 1, config["vocab_size"]), np.float32)
binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)


def step(ids: list[int], new_chunk: bool) -> int:
    """Feed ids; the likeliest next token."""
    feeds = {"input_ids": np.array([ids]), "new_chunk": np.array([int(new_chunk)]), "logits_from": np.array([-1])}
    for name, value in feeds.items():
        binding.bind_cpu_input(name, value.astype(np.int64))
    session.run_with_iobinding(binding)
    return int(logits[0, -1].argmax())


for turn in turns:
    ids = tokenizer.encode(f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False).ids
    token, answer = step(ids, new_chunk=True), []
    while token not in config["eos_token_id"] and len(answer) < 24 and len(ids) + len(answer) < config["memory"]["chunk"]:
        answer.append(token)
        token = step([token], new_chunk=False)
    print(json.dumps({"turn": turn, "tokens": answer, "answer": tokenizer.decode(answer)}))
