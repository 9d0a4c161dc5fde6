"""Fresh buffers of the backends, full of NaN instead of zeros or of whatever lay there: what a step forgets to write, or reads before it was written, shows."""


class NaNs:
    """NumPy, but for `empty`: as if the memory had last held NaN."""

    def __getattr__(self, name):
        import numpy

        return getattr(numpy, name)

    def empty(self, shape, dtype=float):
        import numpy

        return numpy.full(shape, numpy.nan, dtype) if numpy.issubdtype(dtype, numpy.floating) else numpy.empty(shape, dtype)


def mlx(monkeypatch):
    """A window of the MLX mirror begins with buffers of NaN."""
    import mlx.core as mx

    from lm2.lm2_mlx.model import LM2

    right = LM2.start

    def start(self, *args, **fields):
        window = right(self, *args, **fields)
        arrays = window.buffers.arrays
        for name, value in arrays.items():
            arrays[name] = mx.full(value.shape, float("nan"), value.dtype)
        mx.eval(list(arrays.values()))
        return window

    monkeypatch.setattr(LM2, "start", start)


def onnx(monkeypatch):
    """Logits of ONNX Runtime go to memory of NaN."""
    from lm2.runtime.backends import onnx_buffers

    monkeypatch.setattr(onnx_buffers, "np", NaNs())


def onnx_state(monkeypatch):
    """A chunk in ONNX Runtime begins with a state of NaN, but for the bank; and for what is read of it, where it was never written: those zeros are read."""
    import numpy

    from lm2.runtime.backends.onnx_backend import OnnxBackend

    right = OnnxBackend._begun

    def begun(self, batch, state, window):
        arrays = right(self, batch, state, window)
        kept = ("past_bank", "past_memory_") if self._unwritten(state.bank) else ("past_bank",)
        fresh = {n: numpy.full(a.shape, numpy.nan, a.dtype) for n, a in arrays.items() if not n.startswith(kept) and a.dtype.kind == "f"}
        return arrays | fresh

    monkeypatch.setattr(OnnxBackend, "_begun", begun)
