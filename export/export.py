"""`lm2 export`: a model folder in, a folder with one ONNX model and everything a runtime needs out. Needs onnx, not torch.

Knows the steps and the folder; the graph is in step.py. The folder appears whole or not at all. Weights go from file to file in pieces: the graph is built,
and checked, with its initializers beside it, and where the model is small enough to be one file they are copied into it then (wire.py).
"""

import importlib.util
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from ..models.atomic import check_new_folder, folder_name, new_folder, scratch_folder, write_file
from ..models.checkpoints.license import carry_on
from ..models.checkpoints.progress import Counter, Event, Report, silent
from ..models.checkpoints.recalls import carry
from ..models.config import LM2Config
from ..models.errors import ConvertError
from ..models.exported import CHECKED, DATA, FORMAT, KEY, MODEL, Export, file_digest
from ..models.layout import CONFIG, TEXT_FILES, TOKENIZER, ModelFolder, open_folder, tensor_shapes
from ..models.oserrors import utf8_path
from .cost import Cost, measure
from .graph import Graph, Store
from .loud import widened
from .memory import plain_update
from .ops import DOMAIN, NAME, chunk_attention, chunk_attention_body, qlinear
from .ops.function import function
from .options import Options
from .step import Step, value_infos
from .weights import Weights
from .wire import write_whole

INLINE_MAX = 1_900_000_000  # a protobuf message ends at 2 GiB
MEASURED_MAX = 2_000_000_000  # bytes of a model in float32 up to which it is run to say what int4 costs
IR_VERSIONS = {23: 11, 24: 12}
PREFIX = "lm2."


def export_model(
    src: Path,
    dst: Path,
    options: Options = Options(),
    report: Report = silent,
    inline_max: int = INLINE_MAX,
    measure_cost: bool | None = None,
) -> dict[str, Any]:
    """Export model folder `src` to the new folder `dst`. Returns the summary that `lm2 export --json` prints.

    Raises ConvertError, ModelFileError, ConfigError or WriteError; `dst` does not exist then. Memory: at most one matrix in the type it is stored in
    (docs/onnx.md), unless `measure_cost`: that runs the model, in float32 too. None: where that has at most MEASURED_MAX bytes. Above `inline_max` bytes
    weights stay in a file beside the graph.
    """
    began = time.monotonic()
    check_new_folder(dst)
    folder = open_folder(src)
    if not options.memory and folder.config.memory.layers:
        folder = folder.without_memory()
    config = folder.config
    options.check(config)
    total = sum(math.prod(shape) for shape in tensor_shapes(config).values())
    external = estimated_bytes(config, options) > inline_max
    counter = Counter(report, "building the graph", folder.header.file_bytes)
    with new_folder(dst) as out:
        tokenizer = file_digest(src / TOKENIZER) if (src / TOKENIZER).is_file() else ""
        with open(folder.weights, "rb") as source, open(out / DATA, "wb") as side:
            weights = widened(config, Weights(folder, source, counter.add), options)
            step, model = build_model(folder, weights, Store(side, DATA), options, tokenizer)
        onnx.save_model(model, out / MODEL)
        report(Event("checking", 0, None))
        check_model(utf8_path(out) / MODEL)
        if not external:
            report(Event("writing", 0, None))
            with open(out / DATA, "rb") as side, open(out / MODEL, "wb") as whole:
                write_whole(model, side, whole)
            (out / DATA).unlink()
        model.Clear()
        export = write_record(folder, out, options, step, tokenizer)
        cost = measured_cost(folder, out, dst, 4 * total, measure_cost, report) if options.precision == "int4" else None
    return {
        "name": config.name or folder_name(dst),
        "path": str(dst),
        "precision": options.precision,
        "opset": options.opset,
        "attention": export.attention,
        "custom_op": NAME in step.graph.kinds,
        "operators": sorted({NAME, qlinear.NAME, chunk_attention.NAME} & step.graph.kinds),
        "parameters": total,
        "quantized": [{"bits": bits, "matrices": count} for bits, count in sorted(step.matrices.quantized.items())],
        "cost": cost and cost._asdict(),
        "bytes": export.bytes,
        "source_bytes": folder.header.file_bytes,
        "fingerprint": folder.fingerprint,
        "seconds": round(time.monotonic() - began, 3),
    }


def measured_cost(folder: ModelFolder, out: Path, dst: Path, wide_bytes: int, wanted: bool | None, report: Report) -> Cost | None:
    """`quantisation_cost`, or a note that says why not."""
    if wanted or (wanted is None and wide_bytes <= MEASURED_MAX):
        return quantisation_cost(folder, out, dst, report)
    if wanted is None:
        size = f"{wide_bytes / 1e9:.1f} GB"
        report(Event(f"int4: what it costs was not measured, since the model in float32 ({size}) would be in memory: --measure does", note=True))
    return None


def quantisation_cost(folder: ModelFolder, out: Path, dst: Path, report: Report) -> Cost | None:
    """What 4 bits cost, said before the folder appears; None when ONNX Runtime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        report(Event("int4: pip install 'lm2[onnx]' to see what it costs", note=True))
        return None
    with scratch_folder(dst) as name, open(folder.weights, "rb") as source, open(Path(name) / DATA, "wb") as side:
        _, model = build_model(folder, Weights(folder, source), Store(side, DATA), Options(plain=True))
        side.flush()
        onnx.save_model(model, Path(name) / MODEL)
        model.Clear()
        cost = measure(folder.config, utf8_path(Path(name)) / MODEL, utf8_path(out) / MODEL)
    text = f"int4 against float32 over {cost.tokens} tokens: same likeliest token {cost.top1:.1%}, KL divergence {cost.kl:.3f} nats"
    report(Event(text, note=True))
    return cost


def build_model(folder: ModelFolder, weights: Weights, store: Store, options: Options, tokenizer: str = "") -> tuple[Step, onnx.ModelProto]:
    """The whole ONNX model of a folder, in memory apart from what `store` wrote aside."""
    graph = Graph(options.opset, store)
    update, functions = (custom_update if not options.plain else plain_update), bodies(options.opset)
    step = Step(graph, folder.config, weights, options, update)
    step.build()
    made = helper.make_graph(
        graph.nodes,
        "lm2_step",
        value_infos(step.interface.inputs),
        value_infos(step.interface.outputs),
        doc_string="One call of a window. Feed every present_X back as past_X. docs/onnx.md describes each input and output.",
    )
    used = [f for kind, f in functions.items() if kind in graph.kinds]
    domains = {"": options.opset} | {domain: 1 for domain in sorted(graph.domains - {""})}
    if qlinear.NAME in graph.kinds:
        domains[DOMAIN] = qlinear.VERSION
    model = helper.make_model(
        made,
        producer_name="lm2",
        producer_version=_version(),
        ir_version=IR_VERSIONS[options.opset],
        functions=used,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in domains.items()],
    )
    store.tensors.reverse()
    while store.tensors:  # appending copies: hold each weight once
        model.graph.initializer.append(store.tensors.pop())
    helper.set_model_props(model, metadata(folder, options, step, tokenizer))
    return step, model


def custom_update(g: Graph, i: str, f: str, z: str, old: str) -> str:
    """The node ai.lm2::GatedMemoryUpdate."""
    return g.op(NAME, i, f, z, old, domain=DOMAIN, name="update")


def bodies(opset: int) -> dict[str, onnx.FunctionProto]:
    """The function bodies that runtimes without the operator library run, by operator."""
    return {NAME: function(opset), qlinear.NAME: qlinear.function(opset), chunk_attention.NAME: chunk_attention_body.function(opset)}


def metadata(folder: ModelFolder, options: Options, step: Step, tokenizer: str) -> dict[str, str]:
    """What the file says of itself, as string pairs."""
    places = {f"{PREFIX}places": json.dumps({"count": step.stream.width, "of": step.stream.order.tolist()})} if step.stream else {}
    return places | {
        f"{PREFIX}format": str(FORMAT),
        f"{PREFIX}fingerprint": folder.fingerprint,
        f"{PREFIX}config": json.dumps(folder.config.to_dict(), sort_keys=True),
        f"{PREFIX}tokenizer_sha256": tokenizer,
        f"{PREFIX}precision": options.precision,
        f"{PREFIX}attention": attention_kind(options, step),
        f"{PREFIX}state": json.dumps(step.interface.state),
        f"{PREFIX}trace": json.dumps(step.trace),
    }


def attention_kind(options: Options, step: Step) -> str:
    """The operator that attends inside a window."""
    everywhere = all(step.config.backbone.window(i) is not None for i in range(step.config.num_hidden_layers))
    if options.portable or step.exact or everywhere:
        return "Attention"
    return chunk_attention.NAME if options.own_attention else "GroupQueryAttention"


def check_model(file: Path) -> None:
    """onnx's own checker, with shape inference. Raises ConvertError with its first line."""
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConvertError(f"the exported graph is not valid ONNX ({first}): report it with the model's config.json") from None


def write_record(folder: ModelFolder, out: Path, options: Options, step: Step, tokenizer: str) -> Export:
    """Tokenizer, template, settings, recall, licence and config.json with the `onnx` block, beside the graph in `out`."""
    for file in (*TEXT_FILES, "source.json"):
        if (folder.path / file).is_file():
            shutil.copyfile(folder.path / file, out / file)
    if folder.config.memory.layers:
        carry(folder.path, out)
    carry_on(folder.path, out)
    files = {name: ((out / name).stat().st_size, file_digest(out / name)) for name in (MODEL, DATA) if (out / name).exists()}
    export = Export(
        folder.fingerprint,
        options.precision,
        options.opset,
        options.plain,
        options.portable,
        attention_kind(options, step),
        tokenizer,
        files,
    )
    body = json.dumps(folder.config.to_dict() | {KEY: export.to_dict()}, indent=2, ensure_ascii=False) + "\n"
    write_file(out / CONFIG, lambda f: f.write(body.encode("utf-8", "backslashreplace")) and None)
    stamp = {name: [size, (out / name).stat().st_mtime_ns, digest] for name, (size, digest) in files.items()}
    write_file(out / CHECKED, lambda f: f.write(json.dumps(stamp).encode()) and None)
    return export


def estimated_bytes(config: LM2Config, options: Options) -> int:
    """About how many bytes the weights of an export have."""
    total = 0.0
    for name, shape in tensor_shapes(config).items():
        bits = options.bits_of(name.removesuffix(".weight")) if len(shape) == 2 else 0
        total += math.prod(shape) * ((bits + 0.5) / 8 if bits else 2 if options.half and ".memory." not in name else 4)
    positions = config.memory.chunk if config.memory.cell == "released" else options.window or config.max_position_embeddings
    return int(total) + 4 * config.head_dim * positions * len(config.ropes)  # the rotary tables


def _version() -> str:
    from .. import __version__

    return __version__
