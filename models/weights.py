"""From a model folder to a PyTorch model and back: names, dtypes, and the matrices that are one in memory and several on disk.

Knows files and tensors; what the model computes is in lm2.py.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .config import LM2Config
from .errors import ModelFileError
from .layout import ModelFolder, stays_float32, tensor_shapes
from .llama import wide
from .lm2 import LM2
from .tensorfile import read_tensor

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_WIDE = ("memory.token_proj", "memory.read_proj")
# Where a tensor on disk lies in memory: the module that holds it, and which of its pieces it is.
_BACKBONE = {
    "q_proj": ("qkv_proj", 0), "k_proj": ("qkv_proj", 1), "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1),
}  # fmt: skip
_GATED = {
    "k_proj": ("kv_proj", 0), "v_proj": ("kv_proj", 1), "input_gate": ("token_proj", 0), "content": ("token_proj", 1),
    "output_gate": ("read_proj", 0), "forget_gate": ("read_proj", 1),
}  # fmt: skip


Frozen = Callable[[str], bool]


def none_frozen(name: str) -> bool:
    """No matrix."""
    return False


def layers_in_half(folder: ModelFolder) -> Frozen:
    """The layers' matrices, where the folder holds all of them in bfloat16: in it they are exact. Not the embedding and the head, which begin and end what
    is added up in float32."""
    own = [t.dtype for name, t in folder.header.tensors.items() if ".layers." in name and ".memory." not in name and len(t.shape) == 2]
    exact = bool(own) and set(own) == {"BF16"}
    return lambda name: exact and name.startswith("layers.")


def slots_of(model: LM2) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model folder by its name on disk, as a view into the model's parameters (writing it writes the model)."""
    parameters = dict(model.named_parameters())
    c, m = model.config, model.config.memory
    group = c.num_key_value_heads * c.head_dim
    sizes = {
        "qkv_proj": [c.num_attention_heads * c.head_dim, group, group],
        "gate_up_proj": [c.intermediate_size] * 2,
        "kv_proj": [m.heads * m.head_dim] * 2,
        "token_proj": [c.hidden_size] * 2,
        "read_proj": [c.hidden_size] * 2,
    }
    for name in tensor_shapes(c):
        own = name.removeprefix("model.")
        *path, module, kind = own.split(".") if "." in own else ("", "", own)
        in_memory = "memory" in path
        fused = {} if in_memory and m.cell == "released" else _GATED if in_memory else _BACKBONE
        if in_memory and (module, kind) == ("input_gate", "bias") and m.cell == "gated":
            yield name, parameters[".".join([*path, "input_bias"])].data
        elif module in fused:
            whole, piece = fused[module]
            begin = sum(sizes[whole][:piece])
            yield name, parameters[".".join([*path, whole, kind])].data[begin : begin + sizes[whole][piece]]
        else:
            yield name, parameters[own].data


def new_model(config: LM2Config, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, frozen: Frozen = none_frozen) -> LM2:
    """An LM2 with uninitialised weights in their final dtypes: `dtype`, and its wide partner for norms, gates and biases of the memory.

    frozen: whether a matrix outside memories, by its parameter's name, is bfloat16 whatever `dtype` is."""
    with torch.device("meta"):
        model = LM2(config)
    for module_name, module in model.named_modules():
        for name, p in list(module.named_parameters(recurse=False)):
            kind = wide(dtype) if stays_float32(f"{module_name}.{name}") or module_name.endswith(_WIDE) else dtype
            if p.dim() == 2 and ".memory." not in f"{module_name}." and frozen(f"{module_name}.{name}"):
                kind = torch.bfloat16
            setattr(module, name, torch.nn.Parameter(torch.empty(p.shape, dtype=kind, device=device), requires_grad=False))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()


def load_model(
    folder: ModelFolder,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int], None] | None = None,
    frozen: Frozen = none_frozen,
) -> LM2:
    """Load a checked model folder, tensor by tensor: peak memory is the model and its largest tensor. frozen: as in `new_model`.

    `progress` is told the bytes of each tensor read. Raises ModelFileError for weights that are not finite, naming the tensor.
    """
    model = new_model(folder.config, device, dtype, frozen)
    with open(folder.weights, "rb") as f:
        for name, slot in slots_of(model):
            info = folder.header.tensors[name]
            value = torch.from_numpy(read_tensor(f, info))
            if info.dtype == "BF16":
                value = value.view(torch.bfloat16)
            slot.copy_(value)
            if slot.numel() and not torch.isfinite(torch.stack(torch.aminmax(slot))).all():
                raise ModelFileError(
                    f"{folder.weights}: tensor {name} has values that are not finite in {dtype}: convert or pull the model again"
                )
            if progress:
                progress(info.nbytes)
    return model


def load_tensors(model: LM2, tensors: Mapping[str, Tensor]) -> None:
    """Copy named tensors (names on disk) into the model. Raises ModelFileError for a missing, left-over or misshapen one."""
    left = set(tensors)
    for name, slot in slots_of(model):
        if name not in tensors:
            raise ModelFileError(f"tensor {name} is missing")
        if tuple(tensors[name].shape) != tuple(slot.shape):
            raise ModelFileError(f"tensor {name} is {list(tensors[name].shape)}, the config calls for {list(slot.shape)}")
        slot.copy_(tensors[name])
        left.discard(name)
    if left:
        raise ModelFileError(f"tensor {min(left)} is not called for by the config")


def random_model(config: LM2Config, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> LM2:
    """A model with seeded random weights, for tests and benchmarks: matrices N(0, scale^2 / fan-in), norms near 1, small biases."""
    model = new_model(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, slot in slots_of(model):
        noise = torch.randn(slot.shape, generator=generator, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            value = 1.0 + 0.1 * noise
        elif slot.dim() < 2:
            value = 0.1 * noise
        else:
            value = noise * (1.0 if "embed" in name else scale * slot.shape[-1] ** -0.5)
        slot.copy_(value)
    return model


def save_folder(model: LM2, path: Path, dtype: str = "float32") -> None:
    """Write `model` as a model folder (config and weights; no tokenizer). Raises WriteError."""
    import json

    from .atomic import new_folder
    from .layout import CONFIG, WEIGHTS
    from .tensorfile import TensorWriter, from_float32

    codes = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
    slots = dict(slots_of(model))
    plan = [
        (name, "F32" if stays_float32(name) and dtype != "float64" else codes[dtype], tuple(slot.shape)) for name, slot in slots.items()
    ]
    with new_folder(path) as folder:
        with open(folder / WEIGHTS, "wb") as f:
            writer = TensorWriter(f, plan, {"format": "pt"})
            for name, code, _ in plan:
                host = slots[name].detach().cpu()
                array = host.double().numpy() if code == "F64" else from_float32(host.float().numpy(), code)
                writer.write(name, [array])
            writer.finish()
        (folder / CONFIG).write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
