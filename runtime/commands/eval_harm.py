"""`lm2 eval --task harm`: ordinary answers with a full memory beside those of the backbone alone."""

from pathlib import Path
from typing import TYPE_CHECKING

from ...models.layout import bare_fingerprint
from .common import note, soft_interrupt
from .eval_end import Done, ready, tell

if TYPE_CHECKING:
    from ..loading import Model

NOTE_EVERY = 5


def harm(model: "Model", backbone: "Model", count: int, seed: int, window: int | None, longest: int, out: Path | None, as_json: bool) -> None:
    """Ask `count` questions. With `out` a run goes on where it stopped. Raises EvaluationError, WriteError; click.Abort after a stop."""
    from ..evaluation import full_bank, harm_report, natural
    from ..evaluation.harm import Examiner, Row
    from ..evaluation.report import header
    from ..evaluation.store import EvaluationError, Store
    from ..evaluation.streams import Stopped

    if backbone.fingerprint != (wanted := bare_fingerprint(model.fingerprint)):
        raise EvaluationError(f"{backbone.path} (fingerprint {backbone.fingerprint[:12]}) is not {model.name} without its memory ({wanted[:12]}): give --bare its own")
    about, size = model.backend.describe(), window or model.window
    settings = {
        "task": "harm", "model": model.name, "fingerprint": model.fingerprint, "backend": about.backend, "device": about.device, "dtype": about.dtype,
        "quantization": about.quantization, "seed": seed, "window": size, "answer_tokens": longest, "questions_a_talk": full_bank.QUESTIONS,
    }  # fmt: skip
    out = ready(out, "harm.png")
    store = Store(out, settings) if out else None
    rows: list[Row] = store.load("harm", Row)[:count] if store else []
    whole = True
    with soft_interrupt() as interrupted:

        def check() -> None:
            if interrupted():
                raise Stopped

        examiner = Examiner(full_bank.FullBank(model, seed, window, check), backbone, longest)
        asked = examiner.rows(count, len(rows), lambda tokens: note(f"harm: a conversation of {tokens} tokens"))
        if len(rows) < count:
            note(f"harm: first {natural.FILLERS} answers of the model's own, for the talk before the questions")
        try:
            for row in asked:
                rows.append(row)
                if store:
                    store.save("harm", rows)
                if len(rows) % NOTE_EVERY == 0 or len(rows) == count:
                    note(f"harm: {len(rows)} of {count} questions, {harm_report.so_far(rows, seed)}")
        except (Stopped, KeyboardInterrupt):
            whole = False
    report = harm_report.document(model, rows, settings | {"samples": count}, whole)
    words = {
        "window": f"{size} tokens; seed {seed}; greedy answers of at most {longest} tokens",
        "talk": f"held-out facts and ordinary talk, a new conversation every {full_bank.QUESTIONS} questions",
    }
    head = [*header(model, words)[:-1], f"{'control':<10} {harm_report.CONTROL}"]
    title = f"{model.name}: harm"
    done = Done(report, harm_report.table(rows, seed), lambda path: harm_report.draw(rows, title, path))
    tell(done, head, out, "harm.png", as_json)
