"""What every layer of an exported model computed for one chunk, by name: for comparing backends, not for running. Needs the onnx package.

Knows the file's metadata `lm2.trace` and makes a copy of the graph that gives those values out as well; a runtime may fuse that copy a little
differently. Names are those of the PyTorch reference's trace.
Axes: b batch, t positions, d hidden, l banks, n rows, v vocabulary.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ...models.exported import DATA, MODEL
from .onnx_session import SIDE_FILES, side_folder

LOGITS = "logits"


def traced_values(metadata: dict[str, str]) -> dict[str, str]:
    """Trace name -> value of the graph, in the order of computation; empty for files of older exporters."""
    found = json.loads(metadata.get("lm2.trace", "{}"))
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def traced_graph(folder: Path, values: list[str]) -> bytes:
    """A copy of `folder`'s graph with `values` as outputs too. Weights in a side file stay there."""
    import onnx

    model = onnx.load(folder / MODEL, load_external_data=False)
    known = {o.name for o in model.graph.output}
    for value in dict.fromkeys(values):
        if value not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=value))
    return bytes(model.SerializeToString())


def run_traced(
    folder: Path, session: ort.InferenceSession, feeds: dict[str, np.ndarray], values: dict[str, str]
) -> list[tuple[str, np.ndarray]]:
    """One call of the traced copy, opened as `session` was, with every input in `feeds`: names and float32 arrays, `logits` (b, t, v) last."""
    options = session.get_session_options()
    if (folder / DATA).exists():
        options.add_session_config_entry(SIDE_FILES, side_folder(folder))
    traced = ort.InferenceSession(traced_graph(folder, list(values.values())), options, providers=session.get_providers())
    made = traced.run([*values.values(), LOGITS], feeds)
    metadata = session.get_modelmeta().custom_metadata_map
    places = json.loads(metadata.get("lm2.places", "{}"))  # of a stream with loud channels apart (export/loud.py)
    made = [value[..., places["of"]] if places and value.shape[-1] == places["count"] else value for value in made[:-1]] + made[-1:]
    return [(name, value.astype(np.float32)) for name, value in zip((*values, LOGITS), made, strict=True)]
