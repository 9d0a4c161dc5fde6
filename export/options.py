"""What an export may be asked for. Plain Python: imports no ML library."""

from dataclasses import dataclass

from ..models.config import LM2Config
from ..models.errors import ConvertError
from ..models.exported import OPSETS, PRECISIONS

BLOCK = 32  # weights that share a scale (ONNX Runtime's fast kernels and GGUF agree on it)
EMBEDDING_BITS = 8  # of a quantised model's embedding and head: the words themselves are worth more than their bytes
MEMORY_BITS = 8  # of what a memory reads with; what it writes with stays float32


@dataclass(frozen=True)
class Options:
    """precision: fp32, fp16, int8, int4. plain: no custom node: the gated update as standard operators, quantised matrices
    as ONNX Runtime's MatMulNBits. portable: ONNX's own operators only, apart from the gated update, which carries its function body. window: positions of every window,
    cell gated; 0 where whoever runs the file chooses them. tables: the rotary embedding's as weights, for a runtime that has no float64. memory: False for
    the backbone alone.
    """

    precision: str = "fp32"
    opset: int = 24
    plain: bool = False
    portable: bool = False
    window: int = 0
    tables: bool = False
    memory: bool = True

    @property
    def bits(self) -> int:
        """Bits of the backbone's matrices, 0 when they are not quantised."""
        return {"int8": 8, "int4": 4}.get(self.precision, 0)

    @property
    def qlinear(self) -> bool:
        """Whether quantised matrices are nodes of ai.lm2::QLinear. plain has no custom node; portable is for runtimes that read blocks by DequantizeLinear."""
        return self.bits > 0 and not (self.plain or self.portable)

    @property
    def own_attention(self) -> bool:
        """Whether self-attention is ai.lm2::ChunkAttention, which is float32's. With it, cell gated, every sequence of a batch stands at a position of its own."""
        return not (self.plain or self.portable or self.half)

    @property
    def half(self) -> bool:
        """Whether activations are float16."""
        return self.precision == "fp16"

    def bits_of(self, name: str) -> int:
        """Bits of matrix `name` (without `.weight`): 0 for one that is not quantised, which everything a memory writes with is."""
        if not self.bits:
            return 0
        if ".memory." in name:
            reads = ("q_proj", "k_proj", "k_before_proj", "v_proj", "v_topic_proj", "o_proj", "query_proj", "key_proj", "value_proj")
            opens = ("output_gate",) if self.qlinear else ()  # MatMulNBits would round what was read to 8 bits
            return MEMORY_BITS if name.rsplit(".", 1)[-1] in (*reads, *opens) else 0
        return EMBEDDING_BITS if name.endswith(("embed_tokens", "lm_head")) else self.bits

    def check(self, config: LM2Config) -> None:
        """Raise ConvertError for values that do not exist, or that this model cannot have."""
        if self.precision not in PRECISIONS:
            raise ConvertError(f"--precision {self.precision!r} must be one of {', '.join(PRECISIONS)}")
        if self.opset not in OPSETS:
            raise ConvertError(f"--opset {self.opset!r} must be one of {', '.join(map(str, OPSETS))}")
        m, most = config.memory, config.max_position_embeddings
        if self.window and m.cell == "released" and self.window != m.chunk:
            raise ConvertError(f"--window {self.window}: a memory of cell released has windows of its chunk, {m.chunk}: leave --window out")
        if not 0 <= self.window <= most:
            raise ConvertError(f"--window {self.window} must lie from 1 to the model's {most} positions")
